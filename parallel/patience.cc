#include "parallel/patience.h"

#include <thread>

namespace kvloom {

double in_seconds(std::chrono::milliseconds time) { return std::chrono::duration<double>(time).count(); }

bool is_done_within(Transfer& transfer, std::chrono::milliseconds time) {
  using Clock = std::chrono::steady_clock;
  constexpr std::chrono::microseconds kEager{200};
  constexpr std::chrono::microseconds kRest{50};
  const Clock::time_point start = Clock::now();
  while (!transfer.done()) {
    const Clock::duration waited = Clock::now() - start;
    if (waited > time) return false;
    if (waited < kEager) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(kRest);
    }
  }
  return true;
}

}  // namespace kvloom
