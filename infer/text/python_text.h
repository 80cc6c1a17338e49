// Text as Python's str sees it: the evaluation harness's rules for spaces, words and lengths are written in its terms,
// and so are chat templates.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace kvloom {

// Well-formed UTF-8 without the white space (str.isspace) at its beginning, at its end, or at both ends.
std::string_view left_stripped(std::string_view text);
std::string_view right_stripped(std::string_view text);
std::string_view stripped(std::string_view text);

// len(re.split(r"\s+", text)): one more than there are stretches of white space.
std::int64_t count_words(std::string_view text);

// str.capitalize: the first character in title case, the others in lower case, each for itself. A character whose title
// case is several (the German sharp s) stays as it is.
std::string capitalized(std::string_view text);

// str.upper, character by character, but for those whose upper case is several: they stay as they are.
std::string uppercased(std::string_view text);
// str.title: every first letter of letters in title case, the others in lower case.
std::string title_cased(std::string_view text);

// str.splitlines(keepends=True), and a line without its end.
std::vector<std::string_view> text_lines_of(std::string_view text);
std::string_view without_line_end(std::string_view line);

}  // namespace kvloom
