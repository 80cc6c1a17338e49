#include "infer/evaluation/python_text.h"

#include <utf8proc.h>

#include "infer/unicode.h"

namespace kvloom {
namespace {

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

std::string_view stripped(std::string_view text) {
  while (!text.empty()) {
    const Character first = first_character(text);
    if (!is_space(first.code)) break;
    text.remove_prefix(first.bytes);
  }
  return right_stripped(text);
}

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

}  // namespace kvloom
