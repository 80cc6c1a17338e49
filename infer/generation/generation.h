// Generation in text: what is asked for becomes a Request of the engine, and its events become text. The command line
// and the server share it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "infer/engine/engine.h"
#include "infer/generation/text_model.h"
#include "infer/text/text_stream.h"

namespace kvloom {

// A text to go on with, ids, or a conversation to answer in.
using TextPrompt = std::variant<std::string, std::vector<std::int32_t>, Conversation>;

// Whether the ids that end a text do so, or it goes on to its length.
enum class EndIds : std::uint8_t { kHeed, kIgnore };

struct TextRequest {
  TextPrompt prompt;
  std::int64_t max_new_tokens = 128;  // 0: the prompt is only scored
  SamplingParameters sampling;
  int n = 1;
  std::vector<std::string> stops;  // a text ends before the one that begins first
  EndIds ends = EndIds::kHeed;
  std::optional<int> logprobs;         // of the tokens, with so many of the likeliest
  std::optional<int> prompt_logprobs;  // likewise of the prompt's from the second on
  IllFormed ill_formed = IllFormed::kReplace;
  int priority = 0;
  std::optional<double> deadline;
};

// "stop", "length" or "error".
std::string_view name_of(FinishReason reason);

// What may be shown after an event.
struct TextUpdate {
  int choice = 0;
  std::string text;                       // whole characters, and nothing that may become a stop text
  std::vector<TokenScore> tokens;         // that leave with it, in order
  std::vector<TokenScore> prompt_scores;  // of the next tokens of the prompt
  FinishReason finish = FinishReason::kNone;
  std::string message;  // kFailed and kDeadline: why
  Usage usage;          // as the engine's event has it
};

// A request under way, from its prompt to the end of its texts.
class TextRun {
 public:
  // `model` outlives it. Throws InputError for a prompt that cannot be encoded.
  TextRun(const TextModel& model, const TextRequest& request);

  // For the engine, once.
  Request take_request() { return std::move(request_); }

  // `event` is of this request. Where a stop text has come, the text is canceled in the engine, and the tokens of the
  // stop text leave with nothing.
  TextUpdate push(Event& event, Engine& engine);

  // Texts that have not ended.
  int under_way() const { return under_way_; }
  std::int64_t prompt_tokens() const { return prompt_tokens_; }
  // Of the prompt.
  std::int32_t first_token() const { return first_token_; }
  // What the request asked for.
  std::optional<int> logprobs() const { return logprobs_; }
  std::optional<int> prompt_logprobs() const { return prompt_logprobs_; }
  // Ids that were generated for a text, those of its stop text too, without the one that ended it.
  std::int64_t new_tokens(int choice) const { return choices_[static_cast<std::size_t>(choice)].new_tokens; }

 private:
  struct Choice {
    TextStream stream;
    std::vector<TokenScore> held;  // that have not left
    std::int64_t new_tokens = 0;
  };
  static void leave(Choice& choice, TextPiece piece, TextUpdate& update);

  Request request_;
  std::int64_t prompt_tokens_;
  std::int32_t first_token_;
  std::optional<int> logprobs_;
  std::optional<int> prompt_logprobs_;
  std::vector<Choice> choices_;
  int under_way_;
};

// One whole text.
struct TextAnswer {
  std::string text;
  std::vector<TokenScore> tokens;
  FinishReason finish = FinishReason::kNone;
  std::string message;
  std::int64_t new_tokens = 0;
  Usage usage;
};

// All that came of a request.
struct TextResult {
  std::int64_t prompt_tokens = 0;
  std::int32_t first_token = 0;  // of the prompt
  std::vector<TextAnswer> choices;
  std::optional<int> logprobs;            // whether the request asked for scores of the tokens
  std::optional<int> prompt_logprobs;     // and of the prompt
  std::vector<TokenScore> prompt_scores;  // from its second token on
  std::string message;                    // not empty: the request was refused, and has no choices
};

// Adds what an update of `run` brought, and of the run what all its texts share.
void add_update(TextUpdate update, const TextRun& run, TextResult& result);

}  // namespace kvloom
