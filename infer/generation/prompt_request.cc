#include "infer/generation/prompt_request.h"

#include <utility>

namespace kvloom {
namespace {

template <typename To, typename From>
void set(To& value, const std::optional<From>& given) {
  if (given.has_value()) value = static_cast<To>(*given);
}

void set(std::optional<int>& value, const std::optional<std::int64_t>& given) {
  if (given.has_value()) value = static_cast<int>(*given);
}

std::vector<TokenLogprob> logprobs_of(const std::vector<TokenScore>& scores) {
  std::vector<TokenLogprob> logprobs;
  for (const TokenScore& score : scores) {
    logprobs.push_back({.token = score.token, .logprob = score.log_probability, .top = {}});
    for (const auto& [token, logprob] : score.top) logprobs.back().top.emplace_back(token, logprob);
  }
  return logprobs;
}

AnswerEnd end_of(FinishReason reason) {
  if (reason == FinishReason::kStop) return AnswerEnd::kStop;
  return reason == FinishReason::kLength ? AnswerEnd::kLength : AnswerEnd::kError;
}

}  // namespace

TextRequest request_of(PromptLine line, TextRequest defaults) {
  TextRequest request = std::move(defaults);
  if (auto* messages = std::get_if<std::vector<ChatMessage>>(&line.prompt)) {
    request.prompt = Conversation{.messages = std::move(*messages)};
  } else if (auto* text = std::get_if<std::string>(&line.prompt)) {
    request.prompt = std::move(*text);
  } else {
    request.prompt = std::get<TokenIds>(std::move(line.prompt));
  }
  const PromptOptions& given = line.options;
  set(request.max_new_tokens, given.max_new_tokens);
  set(request.sampling.temperature, given.temperature);
  set(request.sampling.top_k, given.top_k);
  set(request.sampling.top_p, given.top_p);
  set(request.sampling.min_p, given.min_p);
  set(request.sampling.repetition_penalty, given.repetition_penalty);
  set(request.sampling.presence_penalty, given.presence_penalty);
  set(request.sampling.frequency_penalty, given.frequency_penalty);
  set(request.sampling.seed, given.seed);
  set(request.n, given.n);
  set(request.logprobs, given.logprobs);
  set(request.prompt_logprobs, given.prompt_logprobs);
  if (!given.logit_bias.empty()) request.sampling.logit_bias = given.logit_bias;
  if (given.stop.has_value()) request.stops = *given.stop;
  if (given.ignore_eos.has_value()) request.ends = *given.ignore_eos ? EndIds::kIgnore : EndIds::kHeed;
  return request;
}

ResultLine result_of(std::int64_t index, const TextResult& result) {
  ResultLine line{.index = index, .prompt_tokens = result.prompt_tokens};
  for (const TextAnswer& choice : result.choices) {
    AnswerLine& answer = line.answers.emplace_back();
    answer.text = choice.text;
    for (const TokenScore& token : choice.tokens) answer.tokens.push_back(token.token);
    answer.finish_reason = end_of(choice.finish);
    answer.message = choice.message;
    if (result.logprobs.has_value()) answer.logprobs = logprobs_of(choice.tokens);
    line.capped = line.capped || choice.usage.capped;
  }
  line.passes_per_token = result.choices.front().usage.passes_per_token;
  if (result.prompt_logprobs.has_value()) {
    line.prompt_logprobs = logprobs_of(result.prompt_scores);
    // Nothing stands before the first.
    line.prompt_logprobs->insert(line.prompt_logprobs->begin(),
                                 {.token = result.first_token, .logprob = {}, .top = {}});
  }
  return line;
}

}  // namespace kvloom
