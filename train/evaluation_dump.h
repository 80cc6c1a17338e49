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
#include <span>
#include <string>

#include "core/hdf5_atomic.h"
#include "core/training_pass.h"

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

// One sequence: [context] each.
struct EvaluationSequence {
  std::int64_t index;
  std::span<const std::int32_t> tokens;
  std::span<const std::int32_t> targets;
};

// Logits go to the file as they are computed: memory holds a few rows of them.
class LogitsDump {
 public:
  // The model outlives it. Nothing stands at `path` before `finish`. Throws InputError when no file can be made there.
  LogitsDump(const std::filesystem::path& path, const Model& model, const EvaluationOrigin& origin);

  void add_tokens(const EvaluationSequence& sequence);
  // For the losses of a batch of this sequence alone. Used while this dump lives.
  LogitsSink sink_of(const EvaluationSequence& sequence);
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
  void add(const EvaluationSequence& sequence);
  void finish();

 private:
  const Model& model_;
  std::int64_t counted_targets_;
  TrainingPass pass_;  // before the file: what it refuses leaves none
  hdf5::AtomicFile file_;
  ModelGradients gradients_;
  double nats_ = 0;
};

}  // namespace kvloom
