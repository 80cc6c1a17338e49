// The loss of a part of a token file: the windows of the model's context, one after the other; ranks take turns.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "data/dataset.h"
#include "infer/evaluation/scorer.h"
#include "parallel/communicator.h"

namespace kvloom {

struct FileLoss {
  double nats = 0;
  std::int64_t tokens = 0;  // that were counted as targets
  double bytes = 0;         // of text that these tokens stand for
  std::int64_t sequences = 0;

  double mean_loss() const { return nats / static_cast<double>(tokens); }
  double perplexity() const;
  double bits_per_byte() const;
};

class FileEvaluation {
 public:
  // The sum of a window's losses in nats, over the targets that count.
  using Measure = std::function<double(const EvaluationWindow& window)>;
  // Of this rank: the windows that all ranks have about done, and the mean loss so far.
  using Progress = std::function<void(std::int64_t done, double mean_loss)>;

  // The first `limit` windows, or all. The file outlives it. Throws InputError when the part has fewer than two tokens.
  FileEvaluation(const TokenFile& file, Part part, std::int64_t context, std::optional<std::int64_t> limit);

  std::int64_t sequences() const { return count_; }
  // Over all windows; reads them.
  std::int64_t counted_targets();

  // The same on every rank, and whatever their number: losses are summed window by window. Collective. Throws Error
  // when the loss is not finite.
  FileLoss run(const Measure& measure, Communicator& ranks, const Progress& progress = nullptr);

 private:
  EvaluationWindow fill(std::int64_t index);

  EvaluationWindows windows_;
  std::vector<double> bytes_by_token_;
  std::int64_t count_;
  std::vector<std::int32_t> tokens_;
  std::vector<std::int32_t> targets_;
};

// What FileEvaluation measures, by a scorer.
double window_nats(const Scorer& scorer, const ScoringOptions& options, const EvaluationWindow& window);

}  // namespace kvloom
