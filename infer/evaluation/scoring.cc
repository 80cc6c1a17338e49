#include "infer/evaluation/scoring.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/decoder.h"
#include "core/head.h"
#include "core/ops.h"
#include "core/plan_run.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

// The last token is only ever a target.
std::span<const std::int32_t> input_of(const TokenRequest& request) {
  return std::span(request.tokens).first(request.tokens.size() - 1);
}

std::int64_t length_of(const TokenRequest& request) { return static_cast<std::int64_t>(request.tokens.size()) - 1; }

// A batch as the model reads it: inputs of one length, filled up at their ends, where nothing that counts sees it.
struct PaddedBatch {
  std::int64_t sequences = 0;
  std::int64_t positions = 0;
  std::vector<std::int32_t> tokens;
};

PaddedBatch pad(std::span<const TokenRequest> requests, const RequestBatch& batch) {
  PaddedBatch padded{.sequences = static_cast<std::int64_t>(batch.size())};
  for (const SharedInput& input : batch) {
    padded.positions = std::max(padded.positions, length_of(requests[input.requests.front()]));
  }
  padded.tokens.resize(static_cast<std::size_t>(padded.sequences * padded.positions), 0);
  for (std::size_t sequence = 0; sequence < batch.size(); ++sequence) {
    std::ranges::copy(input_of(requests[batch[sequence].requests.front()]),
                      padded.tokens.begin() + static_cast<std::ptrdiff_t>(sequence) * padded.positions);
  }
  return padded;
}

// One target: what is expected behind a position of a sequence of the batch.
struct Target {
  std::int64_t sequence;
  std::int64_t position;
  std::int32_t token;
};

std::vector<Target> targets_of(std::span<const TokenRequest> requests, const RequestBatch& batch) {
  std::vector<Target> targets;
  for (std::size_t sequence = 0; sequence < batch.size(); ++sequence) {
    for (const std::size_t index : batch[sequence].requests) {
      const TokenRequest& request = requests[index];
      const std::int64_t length = length_of(request);
      for (std::int64_t position = length - request.targets; position < length; ++position) {
        targets.push_back(
            {static_cast<std::int64_t>(sequence), position, request.tokens[static_cast<std::size_t>(position) + 1]});
      }
    }
  }
  return targets;
}

std::vector<std::int32_t> tokens_of(std::span<const Target> targets) {
  std::vector<std::int32_t> tokens;
  for (const Target& target : targets) tokens.push_back(target.token);
  return tokens;
}

Tensor token_tensor(const Model& model, std::span<const std::int32_t> tokens) {
  return Tensor::of(model.allocator(), {static_cast<std::int64_t>(tokens.size())}, tokens);
}

// The rows that the targets stand behind, of hidden states [sequences * asked, hidden] of the last `asked` positions.
Tensor target_rows(const Model& model, const Tensor& hidden, std::span<const Target> targets, std::int64_t positions,
                   std::int64_t asked) {
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

std::vector<TargetScore> parallel_scores(const Model& model, const Passes& passes, const PaddedBatch& padded,
                                         std::span<const Target> targets) {
  const std::int64_t first = std::ranges::min(targets, {}, &Target::position).position;
  const std::int64_t asked = padded.positions - first;
  const IterationPlan plan = make_iteration_plan(model.config().kv_map, passes, PlanMode::kPrefill, padded.positions);
  const RopeTable rope = make_rope_table(model.config(), padded.positions, model.allocator());
  PlanRun run(model, plan, rope, {.sequences = padded.sequences, .positions = padded.positions, .asked = asked});
  const Tensor hidden = run.forward(token_tensor(model, padded.tokens));
  return head_target_scores(model, target_rows(model, hidden, targets, padded.positions, asked),
                            token_tensor(model, tokens_of(targets)));
}

// The targets behind one position, and the logits they are scored by: a row of `logits` [sequences, vocab] each.
std::vector<TargetScore> step_scores(const Model& model, const Tensor& logits, std::span<const Target> targets) {
  Tensor rows =
      Tensor::empty(model.allocator(), {static_cast<std::int64_t>(targets.size()), logits.size(1)}, DType::kF32);
  for (std::size_t row = 0; row < targets.size(); ++row) {
    Tensor place = rows.rows(static_cast<std::int64_t>(row), static_cast<std::int64_t>(row) + 1);
    ops::copy(logits.rows(targets[row].sequence, targets[row].sequence + 1), place);
  }
  return target_scores(rows, token_tensor(model, tokens_of(targets)), model.allocator());
}

std::vector<TargetScore> sequential_scores(const Model& model, const PaddedBatch& padded,
                                           std::span<const Target> targets) {
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
    std::vector<Target> here;
    for (const std::size_t index : behind[position]) here.push_back(targets[index]);
    const std::vector<TargetScore> found = step_scores(model, logits, here);
    for (std::size_t i = 0; i < found.size(); ++i) scores[behind[position][i]] = found[i];
  }
  return scores;
}

}  // namespace

std::vector<RequestBatch> make_batches(std::span<const TokenRequest> requests, std::int64_t batch_tokens) {
  std::vector<std::size_t> order(requests.size());
  std::iota(order.begin(), order.end(), 0);
  // Equal inputs come to stand together; what is equal in all keeps its order.
  std::ranges::stable_sort(order, [&](std::size_t a, std::size_t b) {
    const auto left = input_of(requests[a]);
    const auto right = input_of(requests[b]);
    if (left.size() != right.size()) return left.size() > right.size();
    return std::ranges::lexicographical_compare(left, right);
  });
  std::vector<RequestBatch> batches;
  std::int64_t longest = 0;
  for (std::size_t i = 0; i < order.size(); ++i) {
    const auto input = input_of(requests[order[i]]);
    if (i > 0 && std::ranges::equal(input, input_of(requests[order[i - 1]]))) {
      batches.back().back().requests.push_back(order[i]);
      continue;
    }
    if (batches.empty() || longest * static_cast<std::int64_t>(batches.back().size() + 1) > batch_tokens) {
      batches.emplace_back();
      longest = static_cast<std::int64_t>(input.size());
    }
    batches.back().push_back({{order[i]}});
  }
  return batches;
}

std::vector<std::size_t> requests_of(const RequestBatch& batch) {
  std::vector<std::size_t> indices;
  for (const SharedInput& input : batch) indices.insert(indices.end(), input.requests.begin(), input.requests.end());
  return indices;
}

std::vector<Score> score_batch(const Model& model, const ScoringOptions& options,
                               std::span<const TokenRequest> requests, const RequestBatch& batch) {
  const PaddedBatch padded = pad(requests, batch);
  const std::vector<Target> targets = targets_of(requests, batch);
  const std::vector<TargetScore> found = options.form == ScoringForm::kSequential
                                             ? sequential_scores(model, padded, targets)
                                             : parallel_scores(model, options.passes, padded, targets);
  std::vector<Score> scores;
  auto next = found.begin();
  for (const std::size_t index : requests_of(batch)) {
    Score score{.log_likelihood = 0, .greedy = true};
    for (std::int64_t i = 0; i < requests[index].targets; ++i, ++next) {
      score.log_likelihood -= static_cast<double>(next->loss);
      score.greedy = score.greedy && next->greedy;
    }
    if (!std::isfinite(score.log_likelihood)) {
      fail("evaluation: the log-likelihood of request {} is {}: the model's weights give no probabilities", index,
           score.log_likelihood);
    }
    scores.push_back(score);
  }
  return scores;
}

}  // namespace kvloom
