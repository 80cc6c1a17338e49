// Engines over small models, and the token-by-token reference that they are held against.
#pragma once

#include <cmath>
#include <map>
#include <memory>
#include <vector>

#include "core/decoder.h"
#include "infer/engine/engine.h"
#include "tests/support/model_fixture.h"

namespace kvloom::test {

// A model of random weights, for training's executor and for the engine's.
struct EngineModel {
  EngineModel(const proto::ModelConfig& message, Random& random, InferenceFormat format = {})
      : trained(ModelConfig::from_proto(message), format.compute, allocator),
        model(trained.config(), trained.shard(), format, allocator) {
    trained.initialize(random.seed());
    disturb_vectors(trained, random);
    for (const Parameter& parameter : model.layout().all()) {
      model.put(parameter, 0, trained.master().view(parameter.offset, parameter.shape));
    }
  }

  CachingCpuAllocator allocator{BlockSizes::kClasses};
  Model trained;
  InferenceModel model;
};

// What came of one text.
struct Answer {
  std::vector<std::int32_t> tokens;
  std::vector<float> log_probabilities;  // of the tokens, where they were asked for
  std::vector<TokenScore> prompt_scores;
  std::optional<TokenScore> end;
  FinishReason finish = FinishReason::kNone;
  Usage usage;

  void take(const Event& event) {
    prompt_scores.insert(prompt_scores.end(), event.prompt_scores.begin(), event.prompt_scores.end());
    if (event.token.has_value()) {
      tokens.push_back(event.token->token);
      log_probabilities.push_back(event.token->log_probability);
    }
    if (event.finish == FinishReason::kNone) return;
    finish = event.finish;
    end = event.end;
    usage = event.usage;
  }
};

using Answers = std::map<std::pair<RequestId, int>, Answer>;

// Steps until nothing is under way; fails the test after `most` steps.
inline Answers run_to_end(Engine& engine, int most = 100000) {
  Answers answers;
  for (int step = 0; !engine.is_idle(); ++step) {
    EXPECT_LT(step, most) << "the engine makes no progress";
    if (step >= most) break;
    for (const Event& event : engine.step()) answers[{event.request, event.choice}].take(event);
  }
  return answers;
}

inline Answer answer_of(Engine& engine, const Request& request) {
  const RequestId id = engine.submit(request);
  Answers answers = run_to_end(engine);
  return answers[{id, 0}];
}

// Sequential semantics: greedy tokens, one at a time, with their log-probabilities; and how far the chosen logit stood
// above the next one, which says where rounding may choose otherwise.
struct Reference {
  std::vector<std::int32_t> tokens;
  std::vector<double> log_probabilities;
  std::vector<double> margins;
};

inline Reference greedy_reference(const Model& model, const std::vector<std::int32_t>& prompt, std::int64_t count) {
  Reference reference;
  Decoder decoder(model, 1, std::ssize(prompt) + count);
  std::vector<float> logits;
  const auto step = [&](std::int32_t token) {
    const std::vector<std::int32_t> one = {token};
    logits = decoder.step(Tensor::of<std::int32_t>(model.allocator(), {1}, one)).values<float>();
  };
  for (const std::int32_t token : prompt) step(token);
  while (std::ssize(reference.tokens) < count) {
    std::vector<float> sorted = logits;
    std::ranges::sort(sorted, std::greater<>());
    const auto best = static_cast<std::int32_t>(std::ranges::max_element(logits) - logits.begin());
    double total = 0;
    for (const float logit : logits) total += std::exp(static_cast<double>(logit - sorted[0]));
    reference.tokens.push_back(best);
    reference.log_probabilities.push_back(-std::log(total));
    reference.margins.push_back(static_cast<double>(sorted[0] - sorted[1]));
    step(best);
  }
  return reference;
}

}  // namespace kvloom::test
