#include "infer/text/python_text.h"

#include <utf8proc.h>

#include "infer/unicode.h"

namespace kvloom {
namespace {

// What ends a line, for str.splitlines.
bool is_line_end(char32_t code) {
  return (code >= 0x0a && code <= 0x0d) || (code >= 0x1c && code <= 0x1e) || code == 0x85 || code == 0x2028 ||
         code == 0x2029;
}

bool is_cased(char32_t code) {
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(code));
  return category == UTF8PROC_CATEGORY_LU || category == UTF8PROC_CATEGORY_LL || category == UTF8PROC_CATEGORY_LT;
}

bool is_space(char32_t code) { return is_white_space(code) || (code >= 0x1c && code <= 0x1f); }

}  // namespace

std::string_view right_stripped(std::string_view text) {
  while (!text.empty()) {
    const Character last = last_character(text);
    if (!is_space(last.code)) break;
    text.remove_suffix(last.bytes);
  }
  return text;
}

std::string_view left_stripped(std::string_view text) {
  while (!text.empty()) {
    const Character first = first_character(text);
    if (!is_space(first.code)) break;
    text.remove_prefix(first.bytes);
  }
  return text;
}

std::string_view stripped(std::string_view text) { return right_stripped(left_stripped(text)); }

std::int64_t count_words(std::string_view text) {
  std::int64_t words = 1;
  bool in_space = false;
  while (!text.empty()) {
    const Character character = first_character(text);
    text.remove_prefix(character.bytes);
    const bool space = is_space(character.code);
    if (space && !in_space) ++words;
    in_space = space;
  }
  return words;
}

std::string capitalized(std::string_view text) {
  if (text.empty()) return {};
  const Character first = first_character(text);
  std::string result;
  append_character(result, static_cast<char32_t>(utf8proc_totitle(static_cast<utf8proc_int32_t>(first.code))));
  return result + lowercased(text.substr(first.bytes));
}

std::string uppercased(std::string_view text) {
  std::string result;
  for (; !text.empty(); text.remove_prefix(first_character(text).bytes)) {
    const auto code = static_cast<utf8proc_int32_t>(first_character(text).code);
    append_character(result, static_cast<char32_t>(utf8proc_toupper(code)));
  }
  return result;
}

std::string title_cased(std::string_view text) {
  std::string result;
  bool in_word = false;
  for (; !text.empty(); text.remove_prefix(first_character(text).bytes)) {
    const char32_t code = first_character(text).code;
    const auto signed_code = static_cast<utf8proc_int32_t>(code);
    append_character(result,
                     static_cast<char32_t>(in_word ? utf8proc_tolower(signed_code) : utf8proc_totitle(signed_code)));
    in_word = is_cased(code);
  }
  return result;
}

std::vector<std::string_view> text_lines_of(std::string_view text) {
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    std::size_t end = 0;
    while (end < text.size()) {
      const Character character = first_character(text.substr(end));
      end += character.bytes;
      if (!is_line_end(character.code)) continue;
      if (character.code == '\r' && text.substr(end).starts_with('\n')) ++end;
      break;
    }
    lines.push_back(text.substr(0, end));
    text.remove_prefix(end);
  }
  return lines;
}

std::string_view without_line_end(std::string_view line) {
  if (line.ends_with("\r\n")) return line.substr(0, line.size() - 2);
  if (line.empty() || !is_line_end(last_character(line).code)) return line;
  return line.substr(0, line.size() - last_character(line).bytes);
}

}  // namespace kvloom
