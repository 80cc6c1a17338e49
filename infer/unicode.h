// Text as Unicode: well-formed UTF-8, normalization forms, case, classes of characters. By utf8proc (Unicode 15).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace kvloom {

inline constexpr std::string_view kReplacementCharacter = "\xef\xbf\xbd";  // U+FFFD

bool is_ascii(std::string_view text);
bool is_well_formed(std::string_view text);

// Every maximal part of an ill-formed sequence becomes one U+FFFD, as Python's and Rust's lossy decoding have it
// (Unicode 15, 3.9, table 3-11).
std::string replace_ill_formed(std::string_view text);

// How many bytes belong to no character.
std::size_t ill_formed_bytes(std::string_view text);

// The length of the longest prefix that no further byte can change: all but an unfinished last character.
std::size_t finished_prefix(std::string_view text);

struct Character {
  char32_t code;
  std::size_t bytes;
};
// The character at the front of well-formed text that is not empty, and the one at its back.
Character first_character(std::string_view text);
Character last_character(std::string_view text);
void append_character(std::string& text, char32_t code);
std::size_t count_characters(std::string_view text);

// Unicode's property White_Space.
bool is_white_space(char32_t code);
// General category M.
bool is_mark(char32_t code);

enum class NormalizationForm { kNfc, kNfd, kNfkc, kNfkd };
// Well-formed text in a normalization form (UAX 15).
std::string normalized(std::string_view text, NormalizationForm form);

// Every character's lower case, whatever stands around it: U+0130 becomes two, and no sigma is final.
std::string lowercased(std::string_view text);

}  // namespace kvloom
