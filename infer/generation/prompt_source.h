// Where the prompts of many texts come from, and what their texts depend on beside them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "infer/engine/engine_options.h"
#include "infer/generation/line_reader.h"
#include "infer/generation/offline_generation.h"

namespace kvloom {

// Lines of a file, or texts.
struct PromptInputs {
  std::vector<std::string> prompts;                     // texts as they were given
  std::string prompt_file;                              // or one in a file; "-": on standard input
  std::string lines_file;                               // or a line of JSON each; likewise
  TextRequest request;                                  // what lines do not say, and no prompt
  std::int64_t vocab = 0;                               // of the model
  std::function<TextPrompt(const std::string&)> speak;  // what a text asks for
};

class PromptSource {
 public:
  // Throws InputError for a file that cannot be read.
  explicit PromptSource(PromptInputs inputs);

  std::string name() const;  // in messages
  // Nothing where it cannot be known before the end.
  std::optional<std::int64_t> total() const { return total_; }
  // The next one, as it was given; nothing: there are no more.
  std::optional<InputLine> next();
  // Of the line that `next` gave last; one that cannot be used has its problem.
  OfflinePrompt prompt_of(const InputLine& line) const;

 private:
  PromptInputs inputs_;
  std::unique_ptr<LineReader> lines_;
  std::optional<std::int64_t> total_;
  std::int64_t taken_ = 0;
};

// The content of a file, "-": of standard input; 16 MiB at most. Throws InputError.
std::string read_prompt(const std::string& path);

// Whatever the texts of such requests depend on, but the model's files and the prompts.
nlohmann::ordered_json identity_of_texts(const TextRequest& request, const InferenceModel& model,
                                         const EngineOptions& engine);

}  // namespace kvloom
