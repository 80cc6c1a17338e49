#include "infer/server/answer_job.h"

#include <algorithm>
#include <utility>

#include "infer/server/openai_error.h"
#include "infer/unicode.h"

namespace kvloom {
namespace {

bool continues_character(const std::string& bytes) {
  return !bytes.empty() && (static_cast<unsigned char>(bytes.front()) & 0xC0U) == 0x80U;
}

std::int64_t character_starts(const std::string& bytes) {
  return std::ranges::count_if(bytes, [](char c) { return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U; });
}

// Places tokens in a text that begins at character `first`: each begins where the one before it ends, and a token that
// goes on with a character begins where that does.
std::vector<PlacedScore> place(std::vector<TokenScore> scores, const Tokenizer& tokenizer, std::int64_t first,
                               std::int64_t characters) {
  std::vector<PlacedScore> placed;
  std::int64_t before = 0;
  for (TokenScore& score : scores) {
    const std::string bytes = score.token < tokenizer.vocab() ? tokenizer.bytes_of(score.token) : std::string();
    const std::int64_t begin = before - (continues_character(bytes) && before > 0 ? 1 : 0);
    placed.push_back({.score = std::move(score), .offset = first + std::min(begin, characters)});
    before += character_starts(bytes);
  }
  return placed;
}

std::vector<TokenScore> taken_from(std::deque<TokenScore>& held, std::size_t count) {
  count = std::min(count, held.size());
  const auto end = held.begin() + static_cast<std::ptrdiff_t>(count);
  std::vector<TokenScore> taken(std::move_iterator(held.begin()), std::move_iterator(end));
  held.erase(held.begin(), end);
  return taken;
}

}  // namespace

AnswerJob::AnswerJob(JobOptions options, const Tokenizer& tokenizer, EngineThread& engine,
                     std::shared_ptr<Exchange> exchange)
    : options_(std::move(options)),
      tokenizer_(tokenizer),
      engine_(engine),
      exchange_(std::move(exchange)),
      writer_(options_.head, tokenizer, is_scored(), options_.request.include_usage),
      prompts_(options_.prompts.size()) {
  choices_.reserve(options_.prompts.size() * static_cast<std::size_t>(n()));
  for (const JobPrompt& prompt : options_.prompts) {
    for (int k = 0; k < n(); ++k) {
      choices_.emplace_back(static_cast<int>(choices_.size()), tokenizer,
                            TextStreamOptions{.place = prompt.answer, .stops = options_.request.stops});
    }
  }
  open_ = choices_.size();
}

// Nothing is generated, and nothing scored: there is nothing to run.
bool AnswerJob::needs_engine(const JobPrompt& prompt) const {
  return options_.max_tokens > 0 || (options_.echo && is_scored() && prompt.ids.size() > 1);
}

Request AnswerJob::request_of(const JobPrompt& prompt) const {
  Request request{.prompt = prompt.ids,
                  .max_new_tokens = options_.max_tokens,
                  .sampling = options_.request.sampling,
                  .n = options_.max_tokens > 0 ? n() : 1,
                  .ends = options_.ends,
                  .alternatives = options_.request.alternatives,
                  .prompt_scores = std::nullopt,
                  .priority = options_.request.priority,
                  .deadline = options_.deadline};
  if (options_.echo && is_scored()) request.prompt_scores = PromptScores{1, *options_.request.alternatives};
  return request;
}

void AnswerJob::start() {
  std::vector<Request> requests;
  for (std::size_t i = 0; i < options_.prompts.size(); ++i) {
    if (!needs_engine(options_.prompts[i])) continue;
    requests.push_back(request_of(options_.prompts[i]));
    submitted_.push_back(i);
  }
  if (requests.empty()) return accepted();
  switch (engine_.submit(std::move(requests), shared_from_this(), ticket_)) {
    case EngineThread::Submission::kQueued:
      exchange_->when_gone([job = shared_from_this()] { job->engine_.cancel(job->ticket_); });
      break;
    case EngineThread::Submission::kFull:
      exchange_->answer(error_response({429, "too many requests are under way; try again", {}, "rate_limit_exceeded"}));
      break;
    case EngineThread::Submission::kDraining:
      exchange_->answer(error_response({503, "the server is stopping"}));
      break;
  }
}

void AnswerJob::accepted() {
  if (options_.request.stream) {
    exchange_->begin({.status = 200,
                      .content_type = "text/event-stream; charset=utf-8",
                      .body = {},
                      .headers = {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}}});
  }
  for (std::size_t i = 0; i < options_.prompts.size(); ++i) {
    if (!needs_engine(options_.prompts[i])) finish_without_engine(i);
  }
  flush();
}

void AnswerJob::flush() {
  if (!pending_.empty()) exchange_->write(std::exchange(pending_, {}));
  if (over_) exchange_->end();
}

void AnswerJob::finish_without_engine(std::size_t prompt) {
  for (int k = 0; k < n(); ++k) {
    begin(prompt, choice_of(prompt, k));
    finish(choice_of(prompt, k), "length");
  }
}

void AnswerJob::refused(const std::string& message) {
  const bool too_long = message.find("the context is") != std::string::npos;
  give_up(400, message, message.substr(0, message.find(':')), too_long ? "context_length_exceeded" : "");
}

void AnswerJob::failed(const std::string& message) {
  const bool engine_failed = !engine_.failure().empty();
  give_up(engine_failed ? 500 : 503, engine_failed ? "the engine has failed" : message);
}

// In a stream the error is its last event.
void AnswerJob::give_up(int status, const std::string& message, const std::string& param, const std::string& code) {
  if (std::exchange(over_, true)) return;
  const ApiError error(status, message, param, code);
  exchange_->answer(error_response(error));
  pending_ += "data: " + error_json(error) + "\n\n";
  flush();
}

void AnswerJob::event(std::size_t index, const Event& event) {
  if (over_) return;
  const std::size_t prompt = submitted_[index];
  Prompt& state = prompts_[prompt];
  state.scores.insert(state.scores.end(), event.prompt_scores.begin(), event.prompt_scores.end());
  if (event.token.has_value() || event.end.has_value() || event.finish != FinishReason::kNone) {
    state.usage.cached_tokens = std::max(state.usage.cached_tokens, event.usage.cached_tokens);
  }
  Choice& choice = choice_of(prompt, event.choice);
  if (event.token.has_value()) take_token(prompt, choice, *event.token);
  if (event.finish == FinishReason::kDeadline || event.finish == FinishReason::kFailed) {
    engine_.cancel(ticket_);
    if (event.finish == FinishReason::kDeadline) return give_up(408, "the request took longer than the server allows");
    return give_up(500, event.message);
  }
  if (event.finish != FinishReason::kNone && options_.max_tokens == 0) {
    finish_without_engine(prompt);
  } else if (event.finish != FinishReason::kNone && !choice.ended) {
    begin(prompt, choice);
    leave(choice, choice.text.finish());
    const bool at_stop = choice.text.stopped();
    if (event.end.has_value() && !at_stop) {
      ++choice.tokens;
      if (is_scored()) send(choice, {}, place({*event.end}, tokenizer_, choice.characters, 0));
    }
    finish(choice, at_stop || event.finish == FinishReason::kStop ? "stop" : "length");
  }
  flush();
}

void AnswerJob::take_token(std::size_t prompt, Choice& choice, const TokenScore& token) {
  if (choice.ended) return;
  begin(prompt, choice);
  ++choice.tokens;
  if (is_scored()) choice.held.push_back(token);
  leave(choice, choice.text.push(token.token));
  if (!choice.text.stopped()) return;
  const auto index = static_cast<std::size_t>(std::ranges::find(submitted_, prompt) - submitted_.begin());
  engine_.cancel(ticket_, index, choice.part.index % n());
  finish(choice, "stop");
}

// What comes before a choice's text.
void AnswerJob::begin(std::size_t prompt, Choice& choice) {
  if (std::exchange(choice.begun, true)) return;
  if (options_.head.endpoint == Endpoint::kChat && options_.request.stream) {
    pending_ += writer_.role_chunk(choice.part.index);
  }
  if (options_.echo) echo(prompt, choice);
}

void AnswerJob::echo(std::size_t prompt, Choice& choice) {
  const JobPrompt& given = options_.prompts[prompt];
  std::vector<PlacedScore> scores;
  if (is_scored()) {
    std::deque<TokenScore> held = {{.token = given.ids.front(), .log_probability = 0, .top = {}}};
    held.insert(held.end(), prompts_[prompt].scores.begin(), prompts_[prompt].scores.end());
    TextStream text(tokenizer_, {.place = Place::kStart});
    std::int64_t characters = 0;
    const auto add = [&](const TextPiece& piece) {
      const auto more = static_cast<std::int64_t>(count_characters(piece.text));
      for (PlacedScore& one : place(taken_from(held, piece.tokens), tokenizer_, characters, more)) {
        scores.push_back(std::move(one));
      }
      characters += more;
    };
    for (const std::int32_t id : given.ids) add(text.push(id));
    add(text.finish());
    scores.front().has_score = false;
  }
  choice.characters = static_cast<std::int64_t>(count_characters(given.text));
  send(choice, given.text, std::move(scores));
}

void AnswerJob::leave(Choice& choice, TextPiece piece) {
  const auto characters = static_cast<std::int64_t>(count_characters(piece.text));
  std::vector<PlacedScore> scores =
      place(taken_from(choice.held, piece.tokens), tokenizer_, choice.characters, characters);
  choice.characters += characters;
  send(choice, std::move(piece.text), std::move(scores));
}

void AnswerJob::send(Choice& choice, std::string text, std::vector<PlacedScore> scores) {
  if (text.empty() && scores.empty()) return;
  if (options_.request.stream) {
    pending_ += writer_.chunk({.index = choice.part.index, .text = std::move(text), .scores = std::move(scores)});
    return;
  }
  choice.part.text += text;
  std::ranges::move(scores, std::back_inserter(choice.part.scores));
}

void AnswerJob::finish(Choice& choice, const char* reason) {
  choice.ended = true;
  choice.part.finish = reason;
  if (options_.request.stream) pending_ += writer_.finish_chunk(choice.part.index, reason);
  if (--open_ == 0) finish_answer();
}

void AnswerJob::finish_answer() {
  over_ = true;
  AnswerUsage usage;
  for (const JobPrompt& prompt : options_.prompts) usage.prompt_tokens += std::ssize(prompt.ids);
  for (const Prompt& prompt : prompts_) usage.cached_tokens += prompt.usage.cached_tokens;
  std::vector<ChoicePart> parts;
  for (Choice& choice : choices_) {
    usage.completion_tokens += choice.tokens;
    parts.push_back(std::move(choice.part));
  }
  if (!options_.request.stream) {
    exchange_->answer({.status = 200, .body = writer_.whole(parts, usage), .headers = {}});
    return;
  }
  if (options_.request.include_usage) pending_ += writer_.usage_chunk(usage);
  pending_ += kStreamEnd;
}

}  // namespace kvloom
