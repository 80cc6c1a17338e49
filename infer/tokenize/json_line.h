// One line of JSON lines.
#pragma once

#include <string>
#include <string_view>

namespace kvloom {

// The string that the line's object has under `key`. Ill-formed UTF-8 and halves of surrogate pairs become U+FFFD.
// Throws InputError, beginning with `where`, for what is no object and a key that is not there or holds no string.
std::string text_of_json_line(std::string_view line, const std::string& key, const std::string& where);

}  // namespace kvloom
