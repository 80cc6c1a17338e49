// The option --passes of verbs that run a trained model.
#pragma once

#include <optional>

#include "core/iteration_plan.h"

namespace kvloom {

// As many passes in all as were given, or else those that the model was trained with. Throws InputError naming --passes
// when that is no number of passes.
Passes passes_for(const std::optional<int>& given, const Passes& trained);

}  // namespace kvloom
