// Bodies of OpenAI's completions and chat completions, checked, as plain values.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "infer/generation_config.h"
#include "infer/sampler.h"
#include "infer/text/chat_template.h"

namespace kvloom {

enum class Endpoint { kCompletions, kChat };

// What one request may ask for.
struct RequestLimits {
  int texts = 128;  // prompts times n
  std::size_t stops = 16;
  std::size_t stop_bytes = 1024;
  std::size_t messages = 4096;
  std::size_t prompt_bytes = std::size_t{4} << 20;
};

using PromptInput = std::variant<std::string, std::vector<std::int32_t>>;

// What both endpoints have.
struct CommonRequest {
  std::string model;  // empty: not said
  bool stream = false;
  bool include_usage = false;
  int n = 1;
  std::optional<std::int64_t> max_tokens;
  std::vector<std::string> stops;
  std::vector<std::int32_t> stop_ids;
  bool ignore_ends = false;
  std::optional<int> alternatives;  // log-probabilities are wanted, and of so many of the likeliest
  SamplingParameters sampling;      // with what the model and the server say where the request does not
  std::optional<std::uint64_t> seed;
  int priority = 0;
};

struct CompletionRequest {
  CommonRequest common;
  std::vector<PromptInput> prompts;
  bool echo = false;
};

struct ChatRequest {
  CommonRequest common;
  Conversation conversation;
};

// Parses JSON. Throws ApiError 400 for what is none, or no object.
nlohmann::ordered_json parse_body(const std::string& body);

// `sampling`: what counts where the request says nothing. Throw ApiError 400 that names the field; other fields that
// are not known are left alone.
CompletionRequest parse_completion(const nlohmann::ordered_json& body, const SamplingSettings& sampling,
                                   const RequestLimits& limits);
ChatRequest parse_chat(const nlohmann::ordered_json& body, const SamplingSettings& sampling,
                       const RequestLimits& limits);

}  // namespace kvloom
