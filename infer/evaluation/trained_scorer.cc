#include <algorithm>

#include "core/decoder.h"
#include "core/ops.h"
#include "core/plan_run.h"
#include "infer/evaluation/scorer.h"

namespace kvloom {
namespace {

// Texts as the model reads them: of one length, filled up at their ends, where nothing that counts sees it.
struct PaddedTexts {
  std::int64_t sequences = 0;
  std::int64_t positions = 0;
  std::vector<std::int32_t> tokens;
};

PaddedTexts pad(std::span<const ScoredText> texts) {
  PaddedTexts padded{.sequences = std::ssize(texts), .positions = 0, .tokens = {}};
  for (const ScoredText& text : texts) padded.positions = std::max(padded.positions, std::ssize(text.tokens));
  padded.tokens.resize(static_cast<std::size_t>(padded.sequences * padded.positions), 0);
  for (std::size_t sequence = 0; sequence < texts.size(); ++sequence) {
    std::ranges::copy(texts[sequence].tokens,
                      padded.tokens.begin() + static_cast<std::ptrdiff_t>(sequence) * padded.positions);
  }
  return padded;
}

// A target of one of the texts.
struct PlacedTarget {
  std::int64_t sequence;
  std::int64_t position;
  std::int32_t token;
};

std::vector<PlacedTarget> targets_of(std::span<const ScoredText> texts) {
  std::vector<PlacedTarget> targets;
  for (std::size_t sequence = 0; sequence < texts.size(); ++sequence) {
    for (const Target& target : texts[sequence].targets) {
      targets.push_back({static_cast<std::int64_t>(sequence), target.position, target.token});
    }
  }
  return targets;
}

Tensor token_tensor(const Model& model, std::span<const std::int32_t> tokens) {
  return Tensor::of(model.allocator(), {static_cast<std::int64_t>(tokens.size())}, tokens);
}

Tensor token_tensor(const Model& model, std::span<const PlacedTarget> targets) {
  std::vector<std::int32_t> tokens;
  for (const PlacedTarget& target : targets) tokens.push_back(target.token);
  return token_tensor(model, tokens);
}

// The rows that the targets stand behind, of hidden states [sequences * asked, hidden] of the last `asked` positions.
Tensor target_rows(const Model& model, const Tensor& hidden, std::span<const PlacedTarget> targets,
                   std::int64_t positions, std::int64_t asked) {
  Tensor rows =
      Tensor::empty(model.allocator(), {static_cast<std::int64_t>(targets.size()), hidden.size(1)}, hidden.dtype());
  for (std::size_t begin = 0; begin < targets.size();) {
    std::size_t end = begin + 1;
    while (end < targets.size() && targets[end].sequence == targets[begin].sequence &&
           targets[end].position == targets[end - 1].position + 1) {
      ++end;
    }
    const std::int64_t from = targets[begin].sequence * asked + targets[begin].position - (positions - asked);
    Tensor place = rows.rows(static_cast<std::int64_t>(begin), static_cast<std::int64_t>(end));
    ops::copy(hidden.rows(from, from + static_cast<std::int64_t>(end - begin)), place);
    begin = end;
  }
  return rows;
}

std::vector<TargetScore> parallel_scores(const Model& model, const Passes& passes, const PaddedTexts& padded,
                                         std::span<const PlacedTarget> targets) {
  if (targets.empty()) return {};
  const std::int64_t first = std::ranges::min(targets, {}, &PlacedTarget::position).position;
  const std::int64_t asked = padded.positions - first;
  const IterationPlan plan = make_iteration_plan(model.config().kv_map, passes, PlanMode::kPrefill, padded.positions);
  const RopeTable rope = make_rope_table(model.config(), padded.positions, model.allocator());
  PlanRun run(model, plan, rope, {.sequences = padded.sequences, .positions = padded.positions, .asked = asked});
  const Tensor hidden = run.forward(token_tensor(model, padded.tokens));
  return head_target_scores(model, target_rows(model, hidden, targets, padded.positions, asked),
                            token_tensor(model, targets));
}

// The targets behind one position, and the logits they are scored by: a row of `logits` [sequences, vocab] each.
std::vector<TargetScore> step_scores(const Model& model, const Tensor& logits, std::span<const PlacedTarget> targets) {
  Tensor rows =
      Tensor::empty(model.allocator(), {static_cast<std::int64_t>(targets.size()), logits.size(1)}, DType::kF32);
  for (std::size_t row = 0; row < targets.size(); ++row) {
    Tensor place = rows.rows(static_cast<std::int64_t>(row), static_cast<std::int64_t>(row) + 1);
    ops::copy(logits.rows(targets[row].sequence, targets[row].sequence + 1), place);
  }
  return target_scores(rows, token_tensor(model, targets), model.allocator());
}

std::vector<TargetScore> sequential_scores(const Model& model, const PaddedTexts& padded,
                                           std::span<const PlacedTarget> targets) {
  std::vector<std::vector<std::size_t>> behind(static_cast<std::size_t>(padded.positions));
  for (std::size_t i = 0; i < targets.size(); ++i) behind[static_cast<std::size_t>(targets[i].position)].push_back(i);
  Decoder decoder(model, padded.sequences, padded.positions);
  std::vector<TargetScore> scores(targets.size());
  std::vector<std::int32_t> now(static_cast<std::size_t>(padded.sequences));
  for (std::size_t position = 0; position < behind.size(); ++position) {
    for (std::size_t sequence = 0; sequence < now.size(); ++sequence) {
      now[sequence] = padded.tokens[sequence * behind.size() + position];
    }
    const Tensor logits = decoder.step(token_tensor(model, now));
    if (behind[position].empty()) continue;
    std::vector<PlacedTarget> here;
    for (const std::size_t index : behind[position]) here.push_back(targets[index]);
    const std::vector<TargetScore> found = step_scores(model, logits, here);
    for (std::size_t i = 0; i < found.size(); ++i) scores[behind[position][i]] = found[i];
  }
  return scores;
}

class TrainedScorer final : public Scorer {
 public:
  explicit TrainedScorer(const Model& model) : model_(model) {}

  const ModelConfig& config() const override { return model_.config(); }
  std::string format() const override { return std::string(name_of(model_.dtype())); }

  std::vector<TargetScore> score(std::span<const ScoredText> texts, const ScoringOptions& options) const override {
    const PaddedTexts padded = pad(texts);
    const std::vector<PlacedTarget> targets = targets_of(texts);
    return options.form == ScoringForm::kSequential ? sequential_scores(model_, padded, targets)
                                                    : parallel_scores(model_, options.passes, padded, targets);
  }

 private:
  const Model& model_;
};

}  // namespace

std::unique_ptr<Scorer> make_scorer(const Model& model) { return std::make_unique<TrainedScorer>(model); }

}  // namespace kvloom
