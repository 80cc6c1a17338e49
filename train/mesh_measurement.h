// What splitting a training step among ranks costs: a step of one rank alone, and of all ranks as tensor, pipeline and
// data ranks, by turns in one run.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "parallel/communicator.h"
#include "proto/run.pb.h"
#include "train/mesh_training.h"

namespace kvloom {

struct MeshMeasurementRequest {
  proto::ModelConfig model;  // with its map
  proto::TrainConfig::Precision precision = proto::TrainConfig::F32;
  Passes passes;
  std::int64_t micro_batch = 1;                        // sequences
  std::int64_t micro_batches = 8;                      // of a step, shared out among data ranks
  std::vector<std::string> axes = {"tp", "pp", "dp"};  // and "even-pp": as many layers on every stage
  int repetitions = 3;                                 // each times every mesh once; the median of their ratios counts
  RankDevice device;                                   // of this rank; every rank's is of the same kind
};

struct MeshStepTime {
  double seconds;  // until all ranks have ended it, as rank 0 sees it
  // Of the rank that used its core longest: on a machine that others use too, what the step took. Of ranks on GPUs only
  // what their hosts did.
  double core_seconds;
};

// A mesh, and its steps as rank 0 saw them.
struct MeshMeasurement {
  std::string name;                 // "one", "tp2"
  std::string detail;               // where the stages begin
  std::vector<MeshStepTime> times;  // by repetition

  std::vector<double> all(double MeshStepTime::*which) const;
};

// Collective over `world`, whose ranks on CPUs each keep to a core and one thread (launch/cores.h). The first is one
// rank alone. Calls `on_start` when all meshes are made. Throws InputError for a world of one rank.
std::vector<MeshMeasurement> measure_meshes(const MeshMeasurementRequest& request, Communicator& world,
                                            const std::function<void()>& on_start);

double median(std::vector<double> values);

// Of each repetition: the time in units of one rank's, divided by the number of ranks.
std::vector<double> ratios(const MeshMeasurement& mesh, const MeshMeasurement& one, int ranks,
                           double MeshStepTime::*which);

// The time with equal numbers of layers a stage over that with stages placed; by repetition, if both were measured.
std::vector<double> even_over_placed(const std::vector<MeshMeasurement>& meshes);

}  // namespace kvloom
