// The lines of `generate --prompts`: one JSON object in, one out. What an engine makes of them, it knows.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "infer/text/chat_template.h"

namespace kvloom {

// How a prompt is to be answered, as far as its line says; null in a line is as if it were not there.
struct PromptOptions {
  std::optional<std::int64_t> max_new_tokens;              // 0 or more
  std::optional<float> temperature;                        // 0 or more
  std::optional<std::int64_t> top_k;                       // 0: all, for which a line may say -1
  std::optional<float> top_p;                              // above 0, up to 1
  std::optional<float> min_p;                              // 0 to 1
  std::optional<float> repetition_penalty;                 // 0.01 to 100
  std::optional<float> presence_penalty;                   // -2 to 2
  std::optional<float> frequency_penalty;                  // -2 to 2
  std::vector<std::pair<std::int32_t, float>> logit_bias;  // ids, each once, with -100 to 100
  std::optional<std::uint64_t> seed;
  std::optional<std::int64_t> n;                 // 1 to 1024
  std::optional<std::vector<std::string>> stop;  // of a text or a list of up to 64, none of them empty
  std::optional<bool> ignore_eos;
  std::optional<std::int64_t> logprobs;         // alternatives of each new token, 0 to 20
  std::optional<std::int64_t> prompt_logprobs;  // of each token of the prompt, 0 to 20
};

using TokenIds = std::vector<std::int32_t>;

struct PromptLine {
  std::variant<std::string, TokenIds, std::vector<ChatMessage>> prompt;  // "prompt", "tokens" or "messages"
  PromptOptions options;
};

// Throws InputError, with `place` ("prompts.jsonl: line 3") and the field's name, for what is no such line: no JSON
// object, not one of the three prompts, ids that are not of 0 to vocab - 1, a value of another type or out of range, or
// a name that means nothing.
PromptLine parse_prompt_line(std::string_view text, const std::string& place, std::int64_t vocab);

enum class FinishReason { kStop, kLength, kError };

struct TokenLogprob {
  std::int32_t token = 0;
  std::optional<double> logprob;  // none: the first token of a prompt has nothing before it
  std::vector<std::pair<std::int32_t, double>> top;
};

struct AnswerLine {
  std::string text;
  TokenIds tokens;
  FinishReason finish_reason = FinishReason::kStop;
  std::optional<std::vector<TokenLogprob>> logprobs;
};

struct ResultLine {
  std::int64_t index = 0;  // of the line in, from 0
  std::int64_t prompt_tokens = 0;
  double passes_per_token = 0;
  std::vector<AnswerLine> answers;  // n of them
  std::optional<std::vector<TokenLogprob>> prompt_logprobs;
};

// One line of JSON without its newline. A single answer's fields stand beside the prompt's, several in "choices". Bytes
// that are no UTF-8 become U+FFFD; log-probabilities are finite, -9999 or more.
std::string result_line(const ResultLine& result);
// The line of a prompt that could not be answered.
std::string error_line(std::int64_t index, const std::string& message);

// The index of a line out that is whole; none for another text, as the end of a file that was cut off.
std::optional<std::int64_t> index_of_result_line(std::string_view line);

}  // namespace kvloom
