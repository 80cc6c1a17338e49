#include "core/same_file.h"

#include <system_error>

namespace kvloom {

namespace fs = std::filesystem;

bool is_same_file(const fs::path& one, const fs::path& other) {
  if (one.empty() || other.empty()) return false;
  std::error_code error;
  if (fs::exists(one, error) != fs::exists(other, error)) return false;
  if (fs::exists(one, error)) return fs::equivalent(one, other, error);
  return fs::weakly_canonical(fs::absolute(one), error) == fs::weakly_canonical(fs::absolute(other), error);
}

}  // namespace kvloom
