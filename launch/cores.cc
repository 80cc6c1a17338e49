#include "launch/cores.h"

#include <omp.h>
#include <sched.h>

#include <cerrno>
#include <cstring>

#include "kernels/error.h"

namespace kvloom {

void stay_on_core(int index) {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) fail("sched_getaffinity: {}", std::strerror(errno));
  const int count = CPU_COUNT(&allowed);
  omp_set_num_threads(1);
  if (count == 1) return;
  if (index >= count) reject_input("rank {} finds no core of its own: {} may be used", index, count);
  int core = 0;
  for (int seen = 0;; ++core) {
    if (!CPU_ISSET(core, &allowed)) continue;
    if (seen++ == index) break;
  }
  cpu_set_t own;
  CPU_ZERO(&own);
  CPU_SET(core, &own);
  if (sched_setaffinity(0, sizeof(own), &own) != 0) {
    fail("sched_setaffinity to core {}: {}", core, std::strerror(errno));
  }
}

}  // namespace kvloom
