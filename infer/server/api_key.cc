#include "infer/server/api_key.h"

#include "core/file.h"
#include "kernels/error.h"

namespace kvloom {

std::string api_key_of(const std::string& key, const std::string& file) {
  constexpr std::size_t kLargestKey = 4096;
  if (file.empty()) return key;
  if (!key.empty()) reject_input("give one of --api-key and --api-key-file");
  std::string line = read_file(file, kLargestKey);
  while (!line.empty() && (line.back() == '\n' || line.back() == '\r')) line.pop_back();
  if (line.empty()) reject_input("--api-key-file: '{}' is empty; right is one line", file);
  return line;
}

}  // namespace kvloom
