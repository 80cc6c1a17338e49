// Safetensors in a folder as Hugging Face lays them out: one file, or many with an index.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "core/convert/other_weights.h"
#include "core/convert/tensor_source.h"
#include "core/file.h"
#include "core/git_lfs.h"
#include "core/safetensors.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr std::uint64_t kLargestIndex = 100'000'000;
constexpr int kDeepestIndex = 3;
constexpr std::size_t kReadAhead = std::size_t{128} << 20;

struct Index {
  std::unordered_map<std::string, std::string> file_of;  // by tensor
  std::vector<std::string> files;                        // ascending
};

Json parse_index(const fs::path& path) {
  const auto shallow = [&](int depth, Json::parse_event_t event, Json&) {
    const bool opens = event == Json::parse_event_t::object_start || event == Json::parse_event_t::array_start;
    if (opens && depth >= kDeepestIndex) reject_input("{} is nested too deep", path.string());
    return true;
  };
  const std::string text = read_file(path, kLargestIndex);
  refuse_git_lfs(text, path.string());
  try {
    return Json::parse(text, shallow);
  } catch (const Json::exception& error) {
    reject_input("{} is no JSON: {}", path.string(), error.what());
  }
}

Index read_index(const fs::path& path) {
  const Json parsed = parse_index(path);
  const auto map = parsed.is_object() ? parsed.find("weight_map") : parsed.end();
  if (!parsed.is_object() || map == parsed.end() || !map->is_object()) {
    reject_input("{} has no object 'weight_map'", path.string());
  }
  Index index;
  for (const auto& [tensor, file] : map->items()) {
    if (!file.is_string()) reject_input("{}: the file of tensor {} must be a string", path.string(), tensor);
    auto name = file.get<std::string>();
    if (name.empty() || name == "." || name == ".." || name.find_first_of(std::string("/\0", 2)) != name.npos) {
      reject_input("{}: tensor {} would be in '{}', which is no name of a file beside it", path.string(), tensor, name);
    }
    index.files.push_back(name);
    index.file_of[tensor] = std::move(name);
  }
  std::ranges::sort(index.files);
  const auto [first, last] = std::ranges::unique(index.files);
  index.files.erase(first, last);
  return index;
}

std::vector<std::string> files_with_suffix(const fs::path& folder, std::string_view suffix) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    std::string name = entry->path().filename().string();
    if (name.ends_with(suffix) && name[0] != '.') names.push_back(std::move(name));
  }
  if (error) reject_input("cannot list {}: {}", folder.string(), error.message());
  std::ranges::sort(names);
  return names;
}

// As in transformers the index says which files to read, and these what is in them. Returns in words where the two
// differ.
std::vector<std::string> differences(const Index& index, std::span<const SafetensorsFile> files,
                                     const fs::path& where) {
  std::vector<std::string> nowhere;
  std::vector<std::string> elsewhere;
  std::size_t found = 0;
  for (const SafetensorsFile& file : files) {
    const std::string name = file.path().filename().string();
    for (const SafetensorsEntry& entry : file.tensors()) {
      const auto listed = index.file_of.find(entry.name);
      if (listed != index.file_of.end()) ++found;
      if (listed == index.file_of.end() || listed->second != name) elsewhere.push_back(entry.name);
    }
  }
  if (found != index.file_of.size()) {
    for (const auto& [tensor, name] : index.file_of) {
      if (std::ranges::none_of(files, [&](const SafetensorsFile& file) { return file.has(tensor); })) {
        nowhere.push_back(tensor);
      }
    }
  }
  std::vector<std::string> words;
  const auto say = [&](std::vector<std::string>& names, std::string_view what) {
    std::ranges::sort(names);
    if (!names.empty()) {
      words.push_back(fmt::format("{}: {} of {} tensors: {}{}", where.string(), what, names.size(), names.front(),
                                  names.size() > 1 ? ", ..." : ""));
    }
  };
  say(nowhere, "names, and no file has,");
  say(elsewhere, "does not name the right file");
  return words;
}

// A name in two files would leave open which tensor is meant.
void check_unique(std::span<const SafetensorsFile> files) {
  std::unordered_map<std::string, const SafetensorsFile*> holder;
  for (const SafetensorsFile& file : files) {
    for (const SafetensorsEntry& entry : file.tensors()) {
      const auto [known, is_new] = holder.emplace(entry.name, &file);
      if (!is_new) {
        reject_input("tensor {} is in both {} and {}", entry.name, known->second->path().string(),
                     file.path().string());
      }
    }
  }
}

class SafetensorsSource final : public TensorSource {
 public:
  SafetensorsSource(const fs::path& path, std::vector<SafetensorsFile> files, std::vector<std::string> unheeded = {})
      : TensorSource(path.string(), list(files), std::move(unheeded)), files_(std::move(files)) {
    for (const SafetensorsFile& file : files_) {
      for (const SafetensorsEntry& entry : file.tensors()) places_.push_back({&file, &entry});
    }
  }

 private:
  struct Place {
    const SafetensorsFile* file;
    const SafetensorsEntry* entry;
  };

  static std::vector<SourceTensor> list(std::span<const SafetensorsFile> files) {
    std::vector<SourceTensor> tensors;
    for (const SafetensorsFile& file : files) {
      for (const SafetensorsEntry& e : file.tensors()) tensors.push_back({e.name, e.shape, e.stored_dtype, e.dtype});
    }
    return tensors;
  }

  void read_checked(const SourceTensor& tensor, const Rectangle& wanted, std::byte* out) override {
    const Place place = places_[position(tensor.name)];
    const std::span<const std::byte> data = place.file->data(*place.entry);
    const std::span<const std::byte> touched = range_of(tensor, wanted, data);
    expect_mapped(place.file->behind(touched, kReadAhead));
    load_mapped(touched);
    take_rectangle(data.data(), tensor.shape, wanted, size_of(*tensor.dtype), out);
    forget_mapped(touched);
  }

  // From the first byte of the rectangle to its last.
  static std::span<const std::byte> range_of(const SourceTensor& tensor, const Rectangle& wanted,
                                             std::span<const std::byte> data) {
    std::int64_t first = 0;
    std::int64_t last = 0;
    for (std::size_t axis = 0; axis < tensor.shape.size(); ++axis) {
      first = first * tensor.shape[axis] + wanted.offset[axis];
      last = last * tensor.shape[axis] + wanted.offset[axis] + wanted.shape[axis] - 1;
    }
    const std::size_t element = size_of(*tensor.dtype);
    return data.subspan(static_cast<std::size_t>(first) * element,
                        static_cast<std::size_t>(last - first + 1) * element);
  }

  std::vector<SafetensorsFile> files_;
  std::vector<Place> places_;  // as tensors()
};

std::vector<SafetensorsFile> open_files(const fs::path& folder, std::span<const std::string> names) {
  std::vector<SafetensorsFile> files;
  for (const std::string& name : names) {
    refuse_git_lfs(first_bytes(folder / name, 64), (folder / name).string());
    files.emplace_back(folder / name);
  }
  return files;
}

bool is_there(const fs::path& path) {
  std::error_code error;
  return fs::exists(path, error);
}

std::string passed_over_index(const fs::path& folder) {
  return fmt::format("{}, since {} is beside it", (folder / kSafetensorsIndex).string(), kSafetensorsSingle);
}

}  // namespace

std::vector<std::string> safetensors_files(const fs::path& folder) {
  if (is_there(folder / kSafetensorsSingle)) return {std::string(kSafetensorsSingle)};
  if (is_there(folder / kSafetensorsIndex)) return read_index(folder / kSafetensorsIndex).files;
  std::vector<std::string> names = files_with_suffix(folder, ".safetensors");
  if (names.size() == 1 && !is_adapter_file(names.front())) return names;
  if (const std::string other = describe_other_weights(folder); !other.empty()) {
    reject_input("{} has no safetensors of a model: {}", folder.string(), other);
  }
  reject_input("{} has {} safetensors files and neither {} nor {}", folder.string(), names.size(), kSafetensorsSingle,
               kSafetensorsIndex);
}

std::unique_ptr<TensorSource> open_safetensors(const fs::path& path) {
  std::error_code error;
  if (!fs::is_directory(path, error)) {
    const std::string name = path.filename().string();
    return std::make_unique<SafetensorsSource>(path, open_files(path.parent_path(), std::span(&name, 1)));
  }
  std::vector<SafetensorsFile> files = open_files(path, safetensors_files(path));
  std::vector<std::string> unheeded;
  if (const fs::path index = path / kSafetensorsIndex; is_there(index)) {
    if (is_there(path / kSafetensorsSingle)) {
      unheeded.push_back(passed_over_index(path));
    } else {
      unheeded = differences(read_index(index), files, index);
    }
  }
  check_unique(files);
  return std::make_unique<SafetensorsSource>(path, std::move(files), std::move(unheeded));
}

}  // namespace kvloom
