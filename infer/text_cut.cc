#include "infer/text_cut.h"

#include <algorithm>
#include <cstdint>
#include <vector>

namespace kvloom {
namespace {

// More would not help a tokenizer that joins everything.
constexpr int kMostTries = 32;

bool is_continuation(char byte) { return (static_cast<unsigned char>(byte) & 0xc0) == 0x80; }
bool is_space(char byte) { return byte == ' ' || (byte >= '\t' && byte <= '\r'); }
// A letter, digit or character beyond ASCII.
bool is_plain(char byte) {
  const auto lower = static_cast<char>(byte | 0x20);
  return (lower >= 'a' && lower <= 'z') || (byte >= '0' && byte <= '9') ||
         (static_cast<unsigned char>(byte) & 0x80) != 0;
}

// Text around a cut: [begin, cut) and [cut, end), of whole characters.
struct Around {
  std::size_t begin;
  std::size_t end;
};

Around around(std::string_view text, std::size_t cut) {
  Around around{cut - std::min(cut, kCutContext), std::min(text.size(), cut + kCutContext)};
  while (around.begin < cut && is_continuation(text[around.begin])) ++around.begin;
  while (around.end > cut && around.end < text.size() && is_continuation(text[around.end])) --around.end;
  return around;
}

bool joins_nothing(const Tokenizer& tokenizer, std::string_view text, std::size_t cut) {
  const Around place = around(text, cut);
  std::vector<std::int32_t> whole;
  std::vector<std::int32_t> parts;
  tokenizer.encode(text.substr(place.begin, place.end - place.begin), Place::kMiddle, whole);
  tokenizer.encode(text.substr(place.begin, cut - place.begin), Place::kMiddle, parts);
  tokenizer.encode(text.substr(cut, place.end - cut), Place::kMiddle, parts);
  return whole == parts;
}

// A line that ends behind a visible character and is followed by one that starts with a letter or digit. White space
// around a newline is often one token with it.
bool is_between_lines(std::string_view text, std::size_t at) {
  if (text[at - 1] != '\n' || !is_plain(text[at])) return false;
  const std::size_t end = at >= 2 && text[at - 2] == '\r' ? at - 2 : at - 1;
  return end > 0 && !is_space(text[end - 1]);
}

// Before a single space between words: most tokenizers put it to the word behind it.
bool is_between_words(std::string_view text, std::size_t at) {
  return text[at] == ' ' && is_plain(text[at - 1]) && at + 1 < text.size() && is_plain(text[at + 1]);
}

// Behind a mark of punctuation, as in scripts without spaces.
bool is_behind_punctuation(std::string_view text, std::size_t at) {
  if (is_continuation(text[at]) || !is_plain(text[at])) return false;
  for (const std::string_view mark : {"。", "，", "、", "！", "？", "；", "：", "।", "؟", "،"}) {
    if (text.substr(0, at).ends_with(mark)) return true;
  }
  return std::string_view(".,;:!?").find(text[at - 1]) != std::string_view::npos;
}

}  // namespace

std::size_t character_cut(std::string_view text) {
  std::size_t end = text.empty() ? 0 : text.size() - 1;
  while (end > 0 && is_continuation(text[end])) --end;
  return end > 0 ? end : text.size();
}

std::size_t find_cut(const Tokenizer& tokenizer, std::string_view text, std::size_t from) {
  if (!tokenizer.joins_characters()) return character_cut(text);
  if (text.size() <= kCutContext) return 0;
  for (const auto& is_candidate : {is_between_lines, is_between_words, is_behind_punctuation}) {
    int tries = 0;
    for (std::size_t at = text.size() - kCutContext; at > from && at > 0 && tries < kMostTries; --at) {
      if (!is_candidate(text, at)) continue;
      if (joins_nothing(tokenizer, text, at)) return at;
      ++tries;
    }
  }
  return 0;
}

}  // namespace kvloom
