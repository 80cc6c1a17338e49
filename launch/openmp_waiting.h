// How long OpenMP's threads spin between two parallel loops before they sleep.
#pragma once

namespace kvloom {

// libgomp spins for milliseconds unless the environment says otherwise: beside other work on the same cores that makes
// small models many times slower, since threads that wait hold up the one that is waited for. Where the user has not
// said anything (OMP_WAIT_POLICY, GOMP_SPINCOUNT) this has them spin for some tens of microseconds. libgomp reads that
// when it is loaded, so the program starts itself again, once. To be called before anything else; returns where there
// is nothing to do or it cannot be done.
void spin_briefly(char** argv);

}  // namespace kvloom
