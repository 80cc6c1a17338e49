// Git LFS leaves a small text in place of a large file that was not fetched.
#pragma once

#include <string>
#include <string_view>

namespace kvloom {

// Throws InputError, naming `where` and what to do, if the file's first bytes are such a text.
void refuse_git_lfs(std::string_view start, const std::string& where);

}  // namespace kvloom
