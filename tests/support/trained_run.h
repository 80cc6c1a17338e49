// A small training through Trainer itself, on ranks that the test brings: its token file, the weights that it starts
// from, and every figure that it reports.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/checkpoint_reader.h"
#include "core/config.h"
#include "data/token_file.h"
#include "parallel/thread_ranks.h"
#include "tests/support/model_fixture.h"
#include "tests/support/temporary_folder.h"
#include "train/trainer.h"
#include "train/training_checkpoint.h"

namespace kvloom::test {

// All that a run says.
class Reports final : public TrainObserver {
 public:
  void on_start(const TrainStart& begun) override { start = weights_of(begun.model); }
  void on_step(const StepReport& report) override { steps.push_back(report); }
  void on_evaluation(const EvaluationReport& report) override { evaluations.push_back(report); }
  void on_checkpoint(std::uint64_t step, const std::string& folder) override { checkpoints[step] = folder; }

  std::vector<double> start;  // weights, flat
  std::vector<StepReport> steps;
  std::vector<EvaluationReport> evaluations;
  std::map<std::uint64_t, std::string> checkpoints;
};

inline void write_token_file(const std::filesystem::path& path, std::int64_t vocab,
                             const std::vector<std::int32_t>& training, const std::vector<std::int32_t>& validation) {
  TokenFileWriter writer(path, {.vocab = vocab, .tokenizer_kind = "bytes", .created_by = "test"});
  for (const auto& [part, tokens] : {std::pair(Part::kTraining, training), std::pair(Part::kValidation, validation)}) {
    if (tokens.empty()) continue;
    writer.begin_document(part);
    writer.append(part, tokens, tokens.size());
  }
  writer.finish();
}

// Writes a checkpoint of random weights, vectors away from their starting values, for `train.start_from`. Returns them.
inline std::vector<double> write_start(const std::filesystem::path& folder, proto::RunConfig run, Random& random) {
  run.mutable_train()->clear_start_from();
  const auto alone = make_single_rank();
  MeshTraining training(run, *alone);
  training.model().initialize(random.seed());
  disturb_vectors(training.model(), random);
  proto::Manifest manifest;
  *manifest.mutable_model() = training.model().config().to_proto();
  *manifest.mutable_passes() = run.passes();
  write_training_checkpoint(folder, training.ranks(), training.model(), training.optimizer(), training.update_sharing(),
                            manifest);
  return weights_of(training.model());
}

// The tensor as the checkpoint has it, widened.
inline std::vector<double> stored(CheckpointReader& reader, const std::string& name) {
  std::int64_t count = 1;
  for (const std::int64_t size : reader.tensor(name).shape()) count *= size;
  std::vector<float> values(static_cast<std::size_t>(count));
  reader.read(name, DType::kF32, values.data());
  return {values.begin(), values.end()};
}

}  // namespace kvloom::test
