// What a run config's mesh says, as the parallel modules take it.
#pragma once

#include "parallel/schedule.h"
#include "parallel/stage_layout.h"
#include "proto/run.pb.h"

namespace kvloom {

// The layers of each pipeline stage: as `mesh.boundaries` says, or by `mesh.placement`. Throws InputError when they do
// not fit the model.
StageLayout stage_layout_of(const proto::RunConfig& config);

SchedulePolicy schedule_policy_of(const proto::MeshConfig& mesh);

}  // namespace kvloom
