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

std::string checksum_of(std::string_view text) {
  return fmt::format("{:016x}", checksum(std::as_bytes(std::span(text))));
}

}  // namespace

KeyedOutput::KeyedOutput(const std::filesystem::path& path, AnswerStart start, std::string_view shared)
    : path_(path.string()), shared_(checksum_of(shared)), file_(path, start) {}

std::string KeyedOutput::key_of(const InputLine& line) const {
  return fmt::format("{}-{}", shared_, checksum_of(line.text));
}

std::int64_t KeyedOutput::skip_known(const std::function<std::optional<InputLine>()>& next) {
  std::int64_t count = 0;
  for (; const std::optional<std::string> known = file_.next_known(); ++count) check_known(*known, count, next());
  return count;
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

}  // namespace kvloom
