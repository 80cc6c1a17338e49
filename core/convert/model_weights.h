// A conversion into a model in memory instead of a file.
#pragma once

#include "core/convert/plan.h"
#include "core/model.h"

namespace kvloom {

// The model's weights = what the conversion makes, rounded to its dtypes, refreshed. Throws InputError when a weight is
// not made or has another shape.
void load_weights(PlannedConversion& conversion, Model& model);

}  // namespace kvloom
