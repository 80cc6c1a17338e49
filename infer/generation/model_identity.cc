#include "infer/generation/model_identity.h"

#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "core/checksum.h"
#include "core/convert/model_source.h"
#include "core/file.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

namespace fs = std::filesystem;

std::uint64_t content_checksum(const fs::path& file) {
  const MappedFile mapped(file);
  expect_mapped(mapped.bytes());
  const std::uint64_t sum = checksum(mapped.bytes());
  forget_mapped(mapped.bytes());
  return sum;
}

}  // namespace

std::uint64_t model_identity(const fs::path& path) {
  if (const auto checkpoint = checkpoint_at(path)) return content_checksum(*checkpoint / "manifest.pb");
  static constexpr std::array<std::string_view, 4> kEndings = {".safetensors", ".json", ".model", ".jinja"};
  std::vector<std::string> files;
  for (const auto& entry : fs::directory_iterator(path)) {
    if (std::ranges::find(kEndings, entry.path().extension().string()) == kEndings.end()) continue;
    files.push_back(fmt::format("{} {:016x}\n", entry.path().filename().string(), content_checksum(entry.path())));
  }
  std::ranges::sort(files);
  std::string all;
  for (const std::string& file : files) all += file;
  return checksum(std::as_bytes(std::span(all)));
}

}  // namespace kvloom
