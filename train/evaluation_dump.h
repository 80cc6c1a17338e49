// What an evaluation leaves for other frameworks to compare with: logits, and the gradient of the mean loss, with the
// tokens that they come from, as HDF5 files that any tool reads.
//
// Both files have tokens, targets i32 [sequences, positions]: where the text ends before a sequence does, tokens are
// filled up with 0 and targets with kIgnoredTarget, which count for nothing. Their attributes:
//   created_by       "kvloom 0.1.0"
//   model            text of proto::ModelConfig
//   map              explicit form
//   dtype            computed in: "f32", "bf16"
//   m, b             of the gradient
//   form, passes     how logits, gradients and mean loss were computed: "parallel" and the passes that ran (m + b, or
//                    as many as were asked for, and one where no layer reads upward), or "sequential" and 0
//   mean_loss        nats, over the counted targets of all sequences
//   counted_targets
//   step             of the checkpoint
//   part, data       "training" or "validation" of the token file with this identity
// The one file has logits f32 [sequences, positions, vocab]; the other, f32, the gradient of the mean loss for every
// weight, under its Hugging Face name and laid out as there: [out, in] for matrices.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "core/hdf5_atomic.h"
#include "core/training_pass.h"
#include "data/dataset.h"

namespace kvloom {

enum class EvaluationForm : std::uint8_t { kParallel, kSequential };

// What is evaluated and how.
struct EvaluationOrigin {
  std::string created_by;
  std::uint64_t step;
  std::string part;
  std::string data;
  std::int64_t sequences;        // of the model's context
  std::int64_t counted_targets;  // in all of them
  EvaluationForm form;
  int passes;              // of the parallel form
  Passes gradient_passes;  // m and b
};

// Logits go to the file as they are computed: memory holds a few rows of them.
class LogitsDump {
 public:
  // The model outlives it. Nothing stands at `path` before `finish`. Throws InputError when no file can be made there.
  LogitsDump(const std::filesystem::path& path, const Model& model, const EvaluationOrigin& origin);

  void add_tokens(const EvaluationWindow& sequence);
  // For the losses of a batch of this sequence alone. Used while this dump lives.
  LogitsSink sink_of(const EvaluationWindow& sequence);
  // With the mean loss that the same logits gave.
  void finish(double mean_loss);

 private:
  hdf5::AtomicFile file_;
  Shape shape_;
};

// Memory holds the gradients of all weights, and one sequence's activations.
class GradientDump {
 public:
  // As LogitsDump. Throws InputError, too, for an origin that is not parallel or whose passes give no gradient.
  GradientDump(const std::filesystem::path& path, const Model& model, const EvaluationOrigin& origin);

  // Goes m + b passes through the sequence and adds its part of the gradient.
  void add(const EvaluationWindow& sequence);
  void finish();

 private:
  const Model& model_;
  std::int64_t counted_targets_;
  TrainingPass pass_;  // before the file: what it refuses leaves none
  hdf5::AtomicFile file_;
  ModelGradients gradients_;
  double nats_ = 0;
};

// The dumps that were asked for, of one evaluation by the model that has gradients.
class EvaluationDumps {
 public:
  struct Paths {
    std::filesystem::path logits;  // empty: none is made
    std::filesystem::path gradients;
  };

  // `passes` are those that losses and logits take. The model outlives it. Throws as the dumps do.
  EvaluationDumps(const Paths& paths, const Model& model, const EvaluationOrigin& origin, const Passes& passes);

  // The sum of the window's losses, in nats, in the form that `origin` names.
  double add(const EvaluationWindow& window);
  // With the mean of all losses. Nothing stands at the paths before.
  void finish(double mean_loss);

 private:
  const Model& model_;
  EvaluationForm form_;
  Passes passes_;
  std::optional<LogitsDump> logits_;
  std::optional<GradientDump> gradients_;
};

}  // namespace kvloom
