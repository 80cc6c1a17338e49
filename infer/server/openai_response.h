// Answers of OpenAI's completions and chat completions, written: whole, and as chunks of a stream.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "infer/engine/request.h"
#include "infer/server/openai_request.h"
#include "infer/tokenizer.h"

namespace kvloom {

struct AnswerHead {
  Endpoint endpoint = Endpoint::kCompletions;
  std::string id;
  std::int64_t created = 0;  // seconds since 1970
  std::string model;
};

// A token that was scored, and where its text begins: in characters, from the beginning of the choice's text.
struct PlacedScore {
  TokenScore score;
  std::int64_t offset = 0;
  bool has_score = true;  // the first token of a prompt has none
};

// What is new of one choice, or in a whole answer, all of it.
struct ChoicePart {
  int index = 0;
  std::string text;
  std::vector<PlacedScore> scores;
  const char* finish = nullptr;  // "stop", "length"
};

struct AnswerUsage {
  std::int64_t prompt_tokens = 0;
  std::int64_t completion_tokens = 0;
  std::int64_t cached_tokens = 0;
};

class AnswerWriter {
 public:
  // `scored`: log-probabilities were asked for. `usage_in_chunks`: chunks before the last have a usage of null.
  AnswerWriter(AnswerHead head, const Tokenizer& tokenizer, bool scored, bool usage_in_chunks)
      : head_(std::move(head)), tokenizer_(tokenizer), scored_(scored), usage_in_chunks_(usage_in_chunks) {}

  std::string whole(const std::vector<ChoicePart>& choices, const AnswerUsage& usage) const;

  // Events of a stream, "data: ...\n\n".
  std::string role_chunk(int index) const;  // of a chat, before a choice's text
  std::string chunk(const ChoicePart& part) const;
  std::string finish_chunk(int index, const char* finish) const;
  std::string usage_chunk(const AnswerUsage& usage) const;

 private:
  nlohmann::ordered_json head_json(const char* object) const;
  nlohmann::ordered_json scores_json(const std::vector<PlacedScore>& scores) const;
  nlohmann::ordered_json chat_scores(const std::vector<PlacedScore>& scores) const;
  nlohmann::ordered_json completion_scores(const std::vector<PlacedScore>& scores) const;
  std::string event_of(nlohmann::ordered_json choice) const;

  AnswerHead head_;
  const Tokenizer& tokenizer_;
  bool scored_;
  bool usage_in_chunks_;
};

inline constexpr const char* kStreamEnd = "data: [DONE]\n\n";

// A token's text, for people: bytes that are no UTF-8 are "bytes:\xe2\x80", as OpenAI writes them.
std::string shown_token(const Tokenizer& tokenizer, std::int32_t token);

}  // namespace kvloom
