// `kvloom bench train --mesh`: what splitting a training step among ranks costs. In one run, on one core or one GPU a
// rank: a step of one rank alone, and of all ranks as tensor, pipeline and data ranks, by turns.
#pragma once

#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

#include "launch/bench_train.h"
#include "parallel/communicator.h"
#include "proto/run.pb.h"
#include "train/mesh_training.h"

namespace kvloom {

struct BenchMeshRequest {
  proto::ModelConfig model;  // with its map
  proto::TrainConfig::Precision precision = proto::TrainConfig::F32;
  Passes passes;
  std::int64_t micro_batch = 1;                        // sequences
  std::int64_t micro_batches = 8;                      // of a step, shared out among data ranks
  std::vector<std::string> axes = {"tp", "pp", "dp"};  // and "even-pp": as many layers on every stage
  int repetitions = 3;                                 // each times every mesh once; the median of their ratios counts
  BenchForm form = BenchForm::kText;
  RankDevice device;  // of this rank; every rank's is of the same kind
};

// Collective over `world`, whose ranks on CPUs each keep to a core and one thread (cores.h). Rank 0 writes.
void bench_mesh(const BenchMeshRequest& request, Communicator& world, std::ostream& out);

}  // namespace kvloom
