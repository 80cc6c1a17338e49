// How long a rank waits for one message.
#pragma once

#include <chrono>
#include <functional>
#include <string>

#include "parallel/communicator.h"

namespace kvloom {

struct Patience {
  std::chrono::milliseconds limit{std::chrono::minutes(10)};      // then the run fails
  std::chrono::milliseconds warn_after{std::chrono::minutes(1)};  // then `warn` is told what is waited for, once a step
  std::function<void(const std::string&)> warn = {};              // empty: nobody is told
};

double in_seconds(std::chrono::milliseconds time);

// Polls, so that a transport makes progress; soon with rests, so that ranks that share a core can compute. False when
// the time is up.
bool is_done_within(Transfer& transfer, std::chrono::milliseconds time);

}  // namespace kvloom
