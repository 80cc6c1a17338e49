// How many layers run under a map, and how that compares with no sharing.
#pragma once

#include <cstdint>

#include "core/iteration_plan.h"

namespace kvloom {

// A layer's work in forward units: a block without attention still runs its feed-forward; K/V alone cost next to it
// little, and are told apart.
struct MapRuns {
  LayerRunCount prompt;
  LayerRunCount training;
};

MapRuns runs_of_map(const KvMap& map, const Passes& passes, std::int64_t prompt);

// Layer runs over the whole prompt, relative to those of no sharing. What runs for the asked positions alone costs next
// to nothing in a long prompt; a single layer runs for them alone with any map.
double prompt_relative(const MapRuns& runs, const MapRuns& no_sharing);
// Of a training step; backward costs about two forwards.
double training_relative(const MapRuns& runs, const MapRuns& no_sharing);

}  // namespace kvloom
