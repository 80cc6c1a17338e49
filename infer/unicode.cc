#include "infer/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "kernels/error.h"

namespace kvloom {
namespace {

unsigned char byte_at(std::string_view text, std::size_t at) { return static_cast<unsigned char>(text[at]); }

// The bytes that a character with this first byte has; 0 for what cannot start one.
std::size_t length_by_first(unsigned char first) {
  if (first < 0x80) return 1;
  if (first < 0xc2 || first > 0xf4) return 0;
  return first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
}

// Whether `next` may follow `first` as a character's second byte: no overlong forms, no surrogates, nothing above
// U+10FFFF (Unicode 15, table 3-7).
bool second_fits(unsigned char first, unsigned char next) {
  const unsigned char low = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
  const unsigned char high = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
  return next >= low && next <= high;
}

struct Sequence {
  std::size_t bytes;  // the character, or the maximal part of one
  bool whole;
};

Sequence sequence_at(std::string_view text, std::size_t at) {
  const unsigned char first = byte_at(text, at);
  const std::size_t length = length_by_first(first);
  if (length <= 1) return {1, length == 1};
  std::size_t have = 1;
  for (; have < length && at + have < text.size(); ++have) {
    const unsigned char next = byte_at(text, at + have);
    if (have == 1 ? !second_fits(first, next) : (next & 0xc0) != 0x80) return {have, false};
  }
  return {have, have == length};
}

// The length of the prefix of eight-byte words without a byte above 0x7f.
std::size_t ascii_prefix(std::string_view text, std::size_t from) {
  std::size_t at = from;
  for (; at + 8 <= text.size(); at += 8) {
    std::uint64_t word;
    std::memcpy(&word, text.data() + at, 8);
    if ((word & 0x8080808080808080u) != 0) break;
  }
  while (at < text.size() && byte_at(text, at) < 0x80) ++at;
  return at;
}

// Where the first ill-formed sequence starts; the text's size when there is none.
std::size_t well_formed_prefix(std::string_view text, std::size_t from) {
  for (std::size_t at = ascii_prefix(text, from); at < text.size();) {
    const Sequence sequence = sequence_at(text, at);
    if (!sequence.whole) return at;
    at += sequence.bytes;
    if (at < text.size() && byte_at(text, at) < 0x80) at = ascii_prefix(text, at);
  }
  return text.size();
}

// No character below U+0300 combines with another or decomposes under NFC; below U+00A0, under any form.
bool stays(std::string_view text, NormalizationForm form) {
  if (form != NormalizationForm::kNfc) return is_ascii(text);
  return std::ranges::none_of(text, [](char c) { return static_cast<unsigned char>(c) >= 0xcc; });
}

}  // namespace

bool is_ascii(std::string_view text) { return ascii_prefix(text, 0) == text.size(); }

bool is_well_formed(std::string_view text) { return well_formed_prefix(text, 0) == text.size(); }

std::string replace_ill_formed(std::string_view text) {
  std::string right;
  right.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = well_formed_prefix(text, at);
    right += text.substr(at, end - at);
    if (end == text.size()) break;
    right += kReplacementCharacter;
    at = end + sequence_at(text, end).bytes;
  }
  return right;
}

std::size_t ill_formed_bytes(std::string_view text) {
  std::size_t count = 0;
  for (std::size_t at = well_formed_prefix(text, 0); at < text.size(); at = well_formed_prefix(text, at)) {
    const std::size_t bytes = sequence_at(text, at).bytes;
    count += bytes;
    at += bytes;
  }
  return count;
}

std::size_t finished_prefix(std::string_view text) {
  for (std::size_t back = 1; back <= 3 && back <= text.size(); ++back) {
    const std::size_t at = text.size() - back;
    if ((byte_at(text, at) & 0xc0) == 0x80) continue;
    const Sequence sequence = sequence_at(text, at);
    const bool unfinished = !sequence.whole && sequence.bytes == back && length_by_first(byte_at(text, at)) > back;
    return unfinished ? at : text.size();
  }
  return text.size();
}

Character first_character(std::string_view text) {
  utf8proc_int32_t code = 0;
  const auto bytes = utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                                      static_cast<utf8proc_ssize_t>(text.size()), &code);
  if (bytes <= 0) fail("unicode: text of {} bytes does not start with a character", text.size());
  return {static_cast<char32_t>(code), static_cast<std::size_t>(bytes)};
}

Character last_character(std::string_view text) {
  std::size_t at = text.size();
  while (at > 0 && (byte_at(text, --at) & 0xc0) == 0x80) continue;
  return first_character(text.substr(at));
}

void append_character(std::string& text, char32_t code) {
  utf8proc_uint8_t bytes[4];
  const auto length = utf8proc_encode_char(static_cast<utf8proc_int32_t>(code), bytes);
  text.append(reinterpret_cast<const char*>(bytes), static_cast<std::size_t>(length));
}

std::size_t count_characters(std::string_view text) {
  return static_cast<std::size_t>(
      std::ranges::count_if(text, [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }));
}

bool is_white_space(char32_t code) {
  if (code <= 0x20) return code == 0x20 || (code >= 0x09 && code <= 0x0d);
  return code == 0x85 || code == 0xa0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200a) || code == 0x2028 ||
         code == 0x2029 || code == 0x202f || code == 0x205f || code == 0x3000;
}

bool is_mark(char32_t code) {
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(code));
  return category == UTF8PROC_CATEGORY_MN || category == UTF8PROC_CATEGORY_MC || category == UTF8PROC_CATEGORY_ME;
}

std::string normalized(std::string_view text, NormalizationForm form) {
  if (stays(text, form)) return std::string(text);
  int options = UTF8PROC_STABLE;
  options |=
      form == NormalizationForm::kNfc || form == NormalizationForm::kNfkc ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE;
  if (form == NormalizationForm::kNfkc || form == NormalizationForm::kNfkd) options |= UTF8PROC_COMPAT;
  utf8proc_uint8_t* bytes = nullptr;
  const auto length =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()), static_cast<utf8proc_ssize_t>(text.size()),
                   &bytes, static_cast<utf8proc_option_t>(options));
  if (length < 0) fail("unicode: normalizing {} bytes: {}", text.size(), utf8proc_errmsg(length));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(bytes, &std::free);
  return {reinterpret_cast<const char*>(bytes), static_cast<std::size_t>(length)};
}

std::string lowercased(std::string_view text) {
  std::string lower;
  lower.reserve(text.size());
  while (!text.empty()) {
    const Character character = first_character(text);
    text.remove_prefix(character.bytes);
    if (character.code == 0x130) {
      lower += "i\xcc\x87";
    } else {
      append_character(lower, static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(character.code))));
    }
  }
  return lower;
}

}  // namespace kvloom
