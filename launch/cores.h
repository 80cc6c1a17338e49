// Threads kept on cores of their own, for measurements.
#pragma once

namespace kvloom {

// Keeps the calling thread, and the OpenMP team that it is alone in from now on, on the core which is `index`-th among
// those that the process may use. A process that its launcher has bound to one core stays there. Throws InputError when
// there are too few.
void stay_on_core(int index);

}  // namespace kvloom
