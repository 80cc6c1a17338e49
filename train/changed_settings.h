// What a run that goes on does otherwise than the one that wrote its checkpoint.
#pragma once

#include <string>

#include "proto/run.pb.h"

namespace kvloom {

// The fields of data, train and passes that differ, "train.learning_rate 0.003 -> 0.001, train.steps 20 -> 40"; empty
// when none does. Left out: what `before` does not say, and what a run that goes on does not use or has checked
// (data.tokens, by the file's identity; train.start_from; train.seed).
std::string changed_settings(const proto::RunConfig& before, const proto::RunConfig& now);

}  // namespace kvloom
