// What a run config says of a step and of the mesh that runs it, as the parallel modules take it. The trainer and
// `kvloom plan` both read it here: what is planned is what runs.
#pragma once

#include <string>

#include "core/plan_run.h"
#include "kernels/dtype.h"
#include "parallel/placement.h"
#include "parallel/schedule.h"
#include "parallel/stage_layout.h"
#include "parallel/step_cost.h"
#include "parallel/tensor_ranks.h"
#include "proto/run.pb.h"

namespace kvloom {

DType compute_dtype_of(const proto::TrainConfig& train);
Recompute recompute_of(const proto::TrainConfig& train);
SequenceParallel sequence_parallel_of(const proto::MeshConfig& mesh);
SchedulePolicy schedule_policy_of(const proto::MeshConfig& mesh);

// One step of one of `data_ranks` pipelines. Throws InputError when the batch does not divide among them.
StepShape step_shape_of(const proto::RunConfig& config, int data_ranks);

// What a rank reaches: as the config declares, else as its kind of device does.
Speeds speeds_of(const proto::RunConfig& config);
PlacementLimits placement_limits_of(const proto::MeshConfig& mesh);

// As many layers on every stage.
StageLayout even_layout_of(const proto::RunConfig& config);

// The step as it runs: stages cut as `mesh.boundaries` says, or by `mesh.placement`. A pure function, equal on every
// rank. Throws InputError when boundaries do not fit the model, or no placement the memory.
PredictedStep plan_step(const proto::RunConfig& config, const StepCounter& counter);

// The first layer of each stage after the first, as `mesh.boundaries` takes it: "6,12,18".
std::string boundaries_text(const StageLayout& layout);

// One line of a log: where the planned step's stages begin, and by whose choice. Empty for a single stage.
std::string describe_stages(const proto::RunConfig& config, const StepCounter& counter, const PredictedStep& planned);

}  // namespace kvloom
