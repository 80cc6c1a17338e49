#include "infer/evaluation/file_evaluation.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "infer/tokenizer.h"
#include "kernels/cross_entropy.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

// Bytes of text by token: those of a token itself, or where the file's tokenizer cannot be read the part's mean.
std::vector<double> bytes_by_token(const TokenFile& file, Part part) {
  std::vector<double> bytes(static_cast<std::size_t>(file.vocab()),
                            static_cast<double>(file.text_bytes(part)) / static_cast<double>(file.count(part)));
  try {
    const auto tokenizer = make_tokenizer(file.tokenizer_kind(), file.tokenizer_model(), "the token file");
    const std::int64_t known = std::min(file.vocab(), tokenizer->vocab());
    for (std::int64_t id = 0; id < known; ++id) {
      bytes[static_cast<std::size_t>(id)] =
          static_cast<double>(tokenizer->bytes_of(static_cast<std::int32_t>(id)).size());
    }
  } catch (const InputError&) {
    return bytes;
  }
  return bytes;
}

std::int64_t targets_in(const EvaluationWindow& window) {
  return std::ranges::count_if(window.targets, [](std::int32_t target) { return target != kIgnoredTarget; });
}

}  // namespace

double FileLoss::perplexity() const { return std::exp(mean_loss()); }
double FileLoss::bits_per_byte() const { return nats / std::log(2.0) / bytes; }

FileEvaluation::FileEvaluation(const TokenFile& file, Part part, std::int64_t context,
                               std::optional<std::int64_t> limit)
    : windows_(file, part, context),
      bytes_by_token_(bytes_by_token(file, part)),
      count_(std::min(windows_.size(), limit.value_or(windows_.size()))),
      tokens_(static_cast<std::size_t>(context)),
      targets_(tokens_.size()) {}

EvaluationWindow FileEvaluation::fill(std::int64_t index) {
  windows_.fill(index, tokens_, targets_);
  return {.index = index, .tokens = tokens_, .targets = targets_};
}

std::int64_t FileEvaluation::counted_targets() {
  std::int64_t counted = 0;
  for (std::int64_t i = 0; i < count_; ++i) counted += targets_in(fill(i));
  return counted;
}

FileLoss FileEvaluation::run(const Measure& measure, Communicator& ranks, const Progress& progress) {
  FileLoss loss{.sequences = count_};
  std::vector<double> nats(static_cast<std::size_t>(count_));  // by window, 0 of those that are other ranks'
  for (std::int64_t i = ranks.rank(); i < count_; i += ranks.size()) {
    const EvaluationWindow window = fill(i);
    nats[static_cast<std::size_t>(i)] = measure(window);
    loss.nats += nats[static_cast<std::size_t>(i)];
    loss.tokens += targets_in(window);
    for (const std::int32_t target : window.targets) {
      if (target != kIgnoredTarget) loss.bytes += bytes_by_token_[static_cast<std::size_t>(target)];
    }
    if (progress) progress(std::min(i + ranks.size(), count_), loss.mean_loss());
  }
  ranks.all_reduce(std::span(nats));
  ranks.all_reduce(std::span(&loss.tokens, 1));
  ranks.all_reduce(std::span(&loss.bytes, 1));
  loss.nats = std::accumulate(nats.begin(), nats.end(), 0.0);
  if (!std::isfinite(loss.nats)) {
    fail("the loss is {}: the checkpoint's weights give no probabilities", loss.mean_loss());
  }
  return loss;
}

double window_nats(const Scorer& scorer, const ScoringOptions& options, const EvaluationWindow& window) {
  ScoredText text{window.tokens, {}};
  for (std::size_t i = 0; i < window.targets.size(); ++i) {
    if (window.targets[i] != kIgnoredTarget) text.targets.push_back({static_cast<std::int64_t>(i), window.targets[i]});
  }
  double nats = 0;
  for (const TargetScore& score : scorer.score(std::span(&text, 1), options)) nats += static_cast<double>(score.loss);
  return nats;
}

}  // namespace kvloom
