// What a run config says of its model when it is served: the same mesh and devices, without training.
#pragma once

#include <vector>

#include "parallel/serving_plan.h"
#include "proto/run.pb.h"

namespace kvloom {

// Weights, hidden states and K/V in the precision of training. Throws InputError for a model that tensor ranks cannot
// share.
ServingShape serving_shape_of(const proto::RunConfig& config);
ServingSpeeds serving_speeds_of(const proto::RunConfig& config);

// The stages that the config gives, or as it has them placed: evenly, or so that they decode fastest by prediction.
// Throws InputError for boundaries that make another number of stages.
std::vector<int> serving_boundaries_of(const proto::RunConfig& config, const ServingShape& shape);

}  // namespace kvloom
