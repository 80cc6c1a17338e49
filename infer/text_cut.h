// Where a long text can be cut so that its parts, encoded apart, give the ids of the whole.
#pragma once

#include <cstddef>
#include <string_view>

#include "infer/tokenizer.h"

namespace kvloom {

// How much text must follow a cut for it to be seen that the tokenizer joins nothing across it.
inline constexpr std::size_t kCutContext = 256;

// The length of a prefix of `text`, as long as one is found: a cut between lines, words or sentences at which the
// tokenizer gives the same ids for the text around it, kCutContext bytes to both sides, in one and in two parts. 0 if
// there is none at `from` or behind it.
std::size_t find_cut(const Tokenizer& tokenizer, std::string_view text, std::size_t from);

// The last place before the end at which no UTF-8 character is cut; the size if that is none.
std::size_t character_cut(std::string_view text);

}  // namespace kvloom
