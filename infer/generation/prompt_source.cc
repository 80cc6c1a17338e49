#include "infer/generation/prompt_source.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <utility>

#include "core/file.h"
#include "core/kv_pages.h"
#include "infer/generation/prompt_request.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

constexpr std::size_t kLongestLine = std::size_t{64} << 20;
constexpr std::uint64_t kLargestPrompt = std::uint64_t{16} << 20;

}  // namespace

PromptSource::PromptSource(PromptInputs inputs) : inputs_(std::move(inputs)) {
  if (inputs_.lines_file.empty()) {
    total_ = std::ssize(inputs_.prompts) + (inputs_.prompt_file.empty() ? 0 : 1);
  } else {
    lines_ = std::make_unique<LineReader>(inputs_.lines_file, kLongestLine);
    total_ = count_lines(inputs_.lines_file);
  }
}

std::string PromptSource::name() const {
  if (inputs_.lines_file.empty()) return inputs_.prompts.empty() ? "--prompt-file" : "--prompt";
  return inputs_.lines_file == "-" ? "standard input" : inputs_.lines_file;
}

std::optional<InputLine> PromptSource::next() {
  ++taken_;
  if (lines_) return lines_->next();
  if (taken_ > total_) return std::nullopt;
  return InputLine{.text = inputs_.prompts.empty() ? read_prompt(inputs_.prompt_file)
                                                   : inputs_.prompts[static_cast<std::size_t>(taken_ - 1)]};
}

OfflinePrompt PromptSource::prompt_of(const InputLine& line) const {
  // "prompts.jsonl: line 3"
  const std::string place = fmt::format("{}{} {}", name(), lines_ ? ": line" : "", taken_);
  OfflinePrompt prompt{.place = place, .request = inputs_.request, .problem = {}, .known = {}};
  try {
    if (line.end == LineEnd::kTooLong) reject_input("{}: is longer than {} bytes", prompt.place, kLongestLine);
    if (lines_) {
      prompt.request = request_of(parse_prompt_line(line.text, prompt.place, inputs_.vocab), inputs_.request);
    } else {
      prompt.request->prompt = inputs_.speak(line.text);
    }
  } catch (const InputError& error) {
    prompt.request.reset();
    prompt.problem = error.what();
  }
  return prompt;
}

std::string read_prompt(const std::string& path) {
  if (path != "-") return read_file(path, kLargestPrompt);
  LineReader input(path, kLargestPrompt);
  std::string text;
  while (const std::optional<InputLine> line = input.next()) {
    text += line->text;
    if (line->end == LineEnd::kNewline) text += '\n';
    if (text.size() > kLargestPrompt)
      reject_input("--prompt-file: standard input has more than {} bytes", kLargestPrompt);
  }
  return text;
}

nlohmann::ordered_json identity_of_texts(const TextRequest& request, const InferenceModel& model,
                                         const EngineOptions& engine) {
  const SamplingParameters& sampling = request.sampling;
  return {{"compute", static_cast<int>(model.dtype())},
          {"weights", static_cast<int>(model.format().weights)},
          {"kv", name_of(engine.kv_format)},
          {"guess", static_cast<int>(engine.guess)},
          {"tolerance", engine.tolerance},
          {"wavefront", engine.window},
          {"grid", engine.grid},
          {"prefill_passes", engine.prefill_passes},
          {"context", engine.context},
          {"max_new_tokens", request.max_new_tokens},
          {"temperature", sampling.temperature},
          {"top_k", sampling.top_k},
          {"top_p", sampling.top_p},
          {"min_p", sampling.min_p},
          {"penalties", {sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty}},
          {"logit_bias", sampling.logit_bias},
          {"seed", sampling.seed},
          {"n", request.n},
          {"ignore_eos", request.ends == EndIds::kIgnore},
          {"stop", request.stops},
          {"logprobs", request.logprobs.value_or(-1)},
          {"prompt_logprobs", request.prompt_logprobs.value_or(-1)}};
}

}  // namespace kvloom
