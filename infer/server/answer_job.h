// One request of a client under way: from events of the engine to the client's answer, whole or as a stream.
#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "infer/server/engine_thread.h"
#include "infer/server/exchange.h"
#include "infer/server/openai_response.h"
#include "infer/text/text_stream.h"

namespace kvloom {

struct JobPrompt {
  std::vector<std::int32_t> ids;
  std::string text;               // as echoed
  Place answer = Place::kMiddle;  // of the text that goes on with it
};

struct JobOptions {
  AnswerHead head;
  CommonRequest request;
  std::vector<JobPrompt> prompts;
  std::vector<std::int32_t> ends;
  std::int64_t max_tokens = 16;
  bool echo = false;
  std::optional<double> deadline;  // on the engine thread's clock
};

class AnswerJob : public EventSink, public std::enable_shared_from_this<AnswerJob> {
 public:
  AnswerJob(JobOptions options, const Tokenizer& tokenizer, EngineThread& engine, std::shared_ptr<Exchange> exchange);

  // Submits, and answers whatever comes of it.
  void start();

  void accepted() override;
  void refused(const std::string& message) override;
  void event(std::size_t index, const Event& event) override;
  void failed(const std::string& message) override;

 private:
  struct Choice {
    Choice(int number, const Tokenizer& tokenizer, TextStreamOptions stream)
        : part{.index = number}, text(tokenizer, std::move(stream)) {}
    ChoicePart part;  // all that has left, unless it is streamed
    TextStream text;
    std::deque<TokenScore> held;  // of tokens that have not left
    std::int64_t characters = 0;  // of the text that has left
    std::int64_t tokens = 0;
    bool begun = false;
    bool ended = false;
  };
  struct Prompt {
    std::vector<TokenScore> scores;
    Usage usage;
  };

  Request request_of(const JobPrompt& prompt) const;
  bool needs_engine(const JobPrompt& prompt) const;
  bool is_scored() const { return options_.request.alternatives.has_value(); }
  int n() const { return options_.request.n; }
  Choice& choice_of(std::size_t prompt, int k) {
    return choices_[prompt * static_cast<std::size_t>(n()) + static_cast<std::size_t>(k)];
  }

  void begin(std::size_t prompt, Choice& choice);
  void echo(std::size_t prompt, Choice& choice);
  void take_token(std::size_t prompt, Choice& choice, const TokenScore& token);
  void leave(Choice& choice, TextPiece piece);
  void send(Choice& choice, std::string text, std::vector<PlacedScore> scores);
  void finish(Choice& choice, const char* reason);
  void finish_without_engine(std::size_t prompt);
  void finish_answer();
  void flush();
  void give_up(int status, const std::string& message, const std::string& param = {}, const std::string& code = {});

  JobOptions options_;
  const Tokenizer& tokenizer_;
  EngineThread& engine_;
  std::shared_ptr<Exchange> exchange_;
  AnswerWriter writer_;
  std::atomic<Ticket> ticket_ = 0;
  std::vector<std::size_t> submitted_;  // the prompts that the engine has, by its index
  std::vector<Prompt> prompts_;
  std::vector<Choice> choices_;
  std::size_t open_ = 0;  // choices that have not ended
  bool over_ = false;
  std::string pending_;  // events of a stream that leave together
};

}  // namespace kvloom
