// The option --passes of verbs that run a trained model.
#pragma once

#include <cstdint>
#include <optional>

#include "core/iteration_plan.h"

namespace kvloom {

// As many passes in all as were given, or else those that the model was trained with. Throws InputError naming --passes
// when that is no number of passes.
Passes passes_for(const std::optional<int>& given, const Passes& trained);

// Of these, those that really run over `positions`: one where no layer reads upward, and never more than positions.
int passes_that_run(const KvMap& map, const Passes& passes, std::int64_t positions);

}  // namespace kvloom
