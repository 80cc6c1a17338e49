#include "infer/tokenize/json_line.h"

#include <cctype>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>
#include <vector>

#include "infer/unicode.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

using Json = nlohmann::json;

// Keeps one member of the outermost object and passes over the rest.
class MemberReader final : public nlohmann::json_sax<Json> {
 public:
  explicit MemberReader(const std::string& key) : key_(&key) {}

  bool null() override { return other("null"); }
  bool boolean(bool) override { return other("true or false"); }
  bool number_integer(number_integer_t) override { return other("a number"); }
  bool number_unsigned(number_unsigned_t) override { return other("a number"); }
  bool number_float(number_float_t, const string_t&) override { return other("a number"); }
  bool binary(binary_t&) override { return other("bytes"); }
  bool string(string_t& value) override {
    if (!is_wanted()) return other("a string");
    found_ = std::move(value);
    kind_.clear();
    wanted_ = false;
    return true;
  }
  bool start_object(std::size_t) override {
    if (depth_ == 0) is_object_ = true;
    return enter("an object");
  }
  bool start_array(std::size_t) override { return enter("a list"); }
  bool end_object() override { return leave(); }
  bool end_array() override { return leave(); }
  bool key(string_t& name) override {
    wanted_ = depth_ == 1 && name == *key_;
    if (depth_ == 1 && !wanted_ && names_.size() < kNamesKept) names_.push_back(name);
    return true;
  }
  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception& error) override {
    fault_ = error.what();
    return false;
  }

  const std::string& fault() const { return fault_; }
  bool is_object() const { return is_object_; }
  std::optional<std::string>& found() { return found_; }
  // What the key holds instead of a string; empty where it is not there.
  const std::string& kind() const { return kind_; }
  const std::vector<std::string>& names() const { return names_; }

 private:
  static constexpr std::size_t kNamesKept = 8;

  bool is_wanted() const { return wanted_ && depth_ == 1; }
  bool other(const char* kind) {
    if (!is_wanted()) return true;
    kind_ = kind;
    found_.reset();
    wanted_ = false;
    return true;
  }
  bool enter(const char* kind) {
    other(kind);
    ++depth_;
    return true;
  }
  bool leave() {
    --depth_;
    return true;
  }

  const std::string* key_;
  int depth_ = 0;
  bool is_object_ = false;
  bool wanted_ = false;
  std::optional<std::string> found_;
  std::string kind_;
  std::string fault_;
  std::vector<std::string> names_;
};

// The value of four hexadecimal digits, -1 for what is none.
int unit_at(std::string_view line, std::size_t at) {
  if (line.size() < at + 6 || line[at] != '\\' || line[at + 1] != 'u') return -1;
  int value = 0;
  for (const char c : line.substr(at + 2, 4)) {
    if (std::isxdigit(static_cast<unsigned char>(c)) == 0) return -1;
    value = value * 16 + (c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
  }
  return value;
}

// "\ud83d" without its other half, which Python writes and JSON does not allow, becomes "\ufffd".
std::string without_half_pairs(std::string_view line) {
  std::string mended(line);
  for (std::size_t at = 0; at + 1 < mended.size();) {
    if (mended[at] != '\\') {
      ++at;
      continue;
    }
    const int unit = unit_at(mended, at);
    const int next = unit_at(mended, at + 6);
    const bool is_pair = unit >= 0xd800 && unit < 0xdc00 && next >= 0xdc00 && next < 0xe000;
    if (!is_pair && unit >= 0xd800 && unit < 0xe000) mended.replace(at, 6, "\\ufffd");
    at += is_pair ? 12 : unit >= 0 ? 6 : 2;
  }
  return mended;
}

MemberReader read(const std::string& line, const std::string& key) {
  MemberReader reader(key);
  Json::sax_parse(line, &reader);
  return reader;
}

}  // namespace

std::string text_of_json_line(std::string_view line, const std::string& key, const std::string& where) {
  const std::string whole = is_well_formed(line) ? std::string(line) : replace_ill_formed(line);
  MemberReader reader = read(whole, key);
  if (!reader.fault().empty()) {
    if (std::string mended = without_half_pairs(whole); mended != whole) reader = read(mended, key);
  }
  if (!reader.fault().empty()) reject_input("{}: is no JSON: {}", where, reader.fault());
  if (!reader.is_object()) reject_input("{}: is no JSON object; right is one such as {{\"{}\": \"...\"}}", where, key);
  if (reader.found()) return std::move(*reader.found());
  if (!reader.kind().empty()) reject_input("{}: '{}' is {}; right is a string", where, key, reader.kind());
  std::string names;
  for (const std::string& name : reader.names()) names += (names.empty() ? "" : ", ") + name;
  reject_input("{}: has no '{}'; it has {}; name the text's key with --text-key", where, key,
               names.empty() ? "nothing" : names);
}

}  // namespace kvloom
