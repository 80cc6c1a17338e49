// The learning rate of a step.
#pragma once

#include <cstdint>

#include "proto/run.pb.h"

namespace kvloom {

// Of the step after `done` steps, by a filled config: a linear warm-up over warmup_steps, then the schedule down to
// minimum_learning_rate at the last step (CONSTANT stays; WARMUP_STABLE_DECAY falls over its last decay_steps).
double learning_rate(std::uint64_t done, const proto::TrainConfig& config);

}  // namespace kvloom
