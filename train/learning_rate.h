// The learning rate of a step: a pure function, so that a resumed run goes on where it was.
#pragma once

#include <cstdint>

#include "proto/run.pb.h"

namespace kvloom {

// Step 1 is the first. With r = learning_rate, m = minimum_learning_rate, w = warmup_steps, n = steps:
// - warm-up: r * step / w for the first w steps;
// - COSINE: from r at step w along half a cosine to m at step n;
// - LINEAR: from r at step w along a line to m at step n;
// - WARMUP_STABLE_DECAY: r until the last decay_steps (0: n / 10, at least 1), then along a line to m at step n (Hu et
//   al. 2024, "MiniCPM", section 4);
// - CONSTANT: r.
// Steps after n stay at the end's value, and so does step n where warm-up is the whole run.
double learning_rate_at(std::uint64_t step, const proto::TrainConfig& config);

}  // namespace kvloom
