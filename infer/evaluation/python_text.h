// Text as Python's str sees it: the evaluation harness's rules for spaces, words and lengths are written in its terms.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace kvloom {

// Well-formed UTF-8 without the white space (str.isspace) at its end, or at both ends.
std::string_view right_stripped(std::string_view text);
std::string_view stripped(std::string_view text);

// len(re.split(r"\s+", text)): one more than there are stretches of white space.
std::int64_t count_words(std::string_view text);

// str.capitalize: the first character in title case, the others in lower case, each for itself. A character whose title
// case is several (the German sharp s) stays as it is.
std::string capitalized(std::string_view text);

}  // namespace kvloom
