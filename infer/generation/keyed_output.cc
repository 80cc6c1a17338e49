#include "infer/generation/keyed_output.h"

#include <fmt/format.h>

#include <span>
#include <utility>

#include "core/checksum.h"
#include "infer/text/prompt_line.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kKey = "key";
constexpr const char* kWaiting = ".waiting";

std::string checksum_of(std::string_view text) {
  return fmt::format("{:016x}", checksum(std::as_bytes(std::span(text))));
}

}  // namespace

KeyedOutput::KeyedOutput(const std::filesystem::path& path, AnswerStart start, std::string_view shared)
    : path_(path.string()),
      shared_(checksum_of(shared)),
      file_(path, start),
      waiting_path_(path_ + kWaiting),
      waiting_file_(waiting_path_, AnswerStart::kResume),
      start_(start) {}

std::string KeyedOutput::key_of(const InputLine& line) const {
  return fmt::format("{}-{}", shared_, checksum_of(line.text));
}

std::int64_t KeyedOutput::skip_known(const std::function<std::optional<InputLine>()>& next) {
  std::int64_t count = 0;
  for (; const std::optional<std::string> known = file_.next_known(); ++count) check_known(*known, count, next());
  // What was left beside another output is nobody's, and gone with the first line that waits.
  while (start_ == AnswerStart::kResume) {
    std::optional<std::string> line = waiting_file_.next_known();
    if (!line.has_value()) break;
    const std::int64_t index = index_of_result_line(*line).value_or(-1);
    if (index >= count) waiting_[index] = std::move(*line);
  }
  return count;
}

std::string KeyedOutput::waiting(std::int64_t index) const {
  const auto found = waiting_.find(index);
  if (found == waiting_.end()) return {};
  const Json result = Json::parse(found->second, nullptr, false);
  const bool is_its_own = result.is_object() && result.value(kKey, Json()) == expected_.back();
  return is_its_own ? found->second : std::string();
}

void KeyedOutput::check_known(const std::string& known, std::int64_t index,
                              const std::optional<InputLine>& line) const {
  const std::string where = fmt::format("'{}', line {}", path_, index + 1);
  const Json result = Json::parse(known, nullptr, false);
  const Json key = result.is_object() ? result.value(kKey, Json()) : Json();
  if (index_of_result_line(known) != index || !key.is_string()) {
    reject_input("{}: is not what was written there; right is another file", where);
  }
  if (!line.has_value()) reject_input("{}: the input has no such line; right is its own, or another file", where);
  if (!key.get_ref<const std::string&>().starts_with(shared_ + "-")) {
    reject_input("{}: was made with another model or other options; right are the same, or another file", where);
  }
  if (key != key_of(*line)) {
    reject_input("{}: is of another prompt than that line of the input; right is the same, or another file", where);
  }
}

void KeyedOutput::add(Json result) {
  result[kKey] = std::move(expected_.front());
  expected_.pop_front();
  file_.add(one_line_of(result));
}

void KeyedOutput::add_waiting(std::string_view result) {
  expected_.pop_front();
  file_.add(result);
}

void KeyedOutput::keep_waiting(std::size_t before, Json result) {
  result[kKey] = expected_.at(before);
  waiting_file_.add(one_line_of(result));
}

void KeyedOutput::finish() {
  file_.finish();
  std::filesystem::remove(waiting_path_);
}

}  // namespace kvloom
