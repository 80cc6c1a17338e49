// The key of --api-key or --api-key-file.
#pragma once

#include <string>

namespace kvloom {

// The first line of the file where one is named, else `key`. Throws InputError for both, and for an empty file.
std::string api_key_of(const std::string& key, const std::string& file);

}  // namespace kvloom
