// Whether two names mean one file, so that nothing is written over what it is made from.
#pragma once

#include <filesystem>

namespace kvloom {

// The files need not be there yet; an empty name means none.
bool is_same_file(const std::filesystem::path& one, const std::filesystem::path& other);

}  // namespace kvloom
