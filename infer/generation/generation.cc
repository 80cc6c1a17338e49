#include "infer/generation/generation.h"

#include <iterator>
#include <utility>

#include "kernels/error.h"

namespace kvloom {
namespace {

EncodedPrompt encoded(const TextModel& model, const TextPrompt& prompt) {
  if (const auto* text = std::get_if<std::string>(&prompt)) return model.of_text(*text);
  if (const auto* tokens = std::get_if<std::vector<std::int32_t>>(&prompt)) return model.of_tokens(*tokens);
  return model.of_messages(std::get<Conversation>(prompt));
}

}  // namespace

std::string_view name_of(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kDeadline:
    case FinishReason::kFailed:
      return "error";
    case FinishReason::kNone:
      break;
  }
  fail("generation: a text that has not ended was asked why it did");
}

TextRun::TextRun(const TextModel& model, const TextRequest& request)
    : logprobs_(request.logprobs), prompt_logprobs_(request.prompt_logprobs) {
  // Before room is made for them.
  constexpr int kMostTexts = 1 << 16;
  if (request.n < 1 || request.n > kMostTexts) reject_input("n: {}; right is 1 to {}", request.n, kMostTexts);
  EncodedPrompt prompt = encoded(model, request.prompt);
  prompt_tokens_ = std::ssize(prompt.tokens);
  first_token_ = prompt.tokens.empty() ? 0 : prompt.tokens.front();
  under_way_ = request.n;
  for (int k = 0; k < request.n; ++k) {
    const TextStreamOptions options{.place = prompt.answer, .stops = request.stops, .ill_formed = request.ill_formed};
    choices_.push_back({.stream = TextStream(model.tokenizer(), options), .held = {}});
  }
  request_ = {.prompt = std::move(prompt.tokens),
              .max_new_tokens = request.max_new_tokens,
              .sampling = request.sampling,
              .n = request.n,
              .ends = {},
              .alternatives = request.logprobs,
              .prompt_scores = std::nullopt,
              .priority = request.priority,
              .deadline = request.deadline};
  if (request.ends == EndIds::kHeed) request_.ends = std::move(prompt.ends);
  if (request.prompt_logprobs.has_value())
    request_.prompt_scores = {.first = 1, .alternatives = *request.prompt_logprobs};
}

void TextRun::leave(Choice& choice, TextPiece piece, TextUpdate& update) {
  update.text += piece.text;
  const auto end = choice.held.begin() + static_cast<std::ptrdiff_t>(piece.tokens);
  std::move(choice.held.begin(), end, std::back_inserter(update.tokens));
  choice.held.erase(choice.held.begin(), end);
}

TextUpdate TextRun::push(Event& event, Engine& engine) {
  Choice& choice = choices_.at(static_cast<std::size_t>(event.choice));
  TextUpdate update{.choice = event.choice,
                    .text = {},
                    .tokens = {},
                    .prompt_scores = std::move(event.prompt_scores),
                    .finish = event.finish,
                    .message = std::move(event.message),
                    .usage = event.usage};
  if (event.token.has_value()) {
    ++choice.new_tokens;
    const std::int32_t token = event.token->token;
    choice.held.push_back(std::move(*event.token));
    leave(choice, choice.stream.push(token), update);
  }
  if (event.finish != FinishReason::kNone) leave(choice, choice.stream.finish(), update);
  if (choice.stream.stopped()) {
    update.finish = FinishReason::kStop;
    if (event.finish == FinishReason::kNone) engine.cancel(event.request, event.choice);
  }
  if (update.finish == FinishReason::kDeadline) update.message = "its time was over";
  if (update.finish != FinishReason::kNone) --under_way_;
  return update;
}

void add_update(TextUpdate update, const TextRun& run, TextResult& result) {
  result.prompt_tokens = run.prompt_tokens();
  result.first_token = run.first_token();
  result.logprobs = run.logprobs();
  result.prompt_logprobs = run.prompt_logprobs();
  std::ranges::move(update.prompt_scores, std::back_inserter(result.prompt_scores));
  const auto index = static_cast<std::size_t>(update.choice);
  if (result.choices.size() <= index) result.choices.resize(index + 1);
  TextAnswer& answer = result.choices[index];
  answer.text += update.text;
  std::ranges::move(update.tokens, std::back_inserter(answer.tokens));
  answer.new_tokens = run.new_tokens(update.choice);
  answer.usage = update.usage;
  answer.finish = update.finish;
  answer.message = std::move(update.message);
}

}  // namespace kvloom
