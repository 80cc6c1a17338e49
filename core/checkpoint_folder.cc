#include "core/checkpoint_folder.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <set>
#include <string_view>
#include <system_error>

#include "core/checkpoint_manifest.h"
#include "core/checkpoint_reader.h"
#include "core/file.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "step-";
constexpr std::size_t kDigits = 8;
constexpr std::string_view kBestFile = "best";
constexpr std::uint64_t kLargestMark = 64;
constexpr std::string_view kPartialSuffix = ".partial";
constexpr std::string_view kReplacedSuffix = ".replaced";
constexpr std::string_view kShardPrefix = "shard-";
constexpr std::string_view kShardSuffix = ".h5";

bool is_shard_name(std::string_view name) {
  if (!name.starts_with(kShardPrefix) || !name.ends_with(kShardSuffix)) return false;
  name.remove_prefix(kShardPrefix.size());
  name.remove_suffix(kShardSuffix.size());
  return name.find_first_not_of("0123456789-") == name.npos;
}

// The name between "." and `suffix`; empty if the name is not made so.
std::string hidden_name(const std::string& name, std::string_view suffix) {
  if (name.size() <= suffix.size() + 1 || name[0] != '.' || !name.ends_with(suffix)) return {};
  return name.substr(1, name.size() - 1 - suffix.size());
}

void remove_folder(const fs::path& folder) {
  std::error_code error;
  fs::remove_all(folder, error);
  if (error) fail("cannot remove {}: {}", folder.string(), error.message());
}

void restore_or_remove(const fs::path& replaced, const fs::path& folder) {
  std::error_code error;
  if (fs::exists(folder, error)) return remove_folder(replaced);
  rename_file(replaced, folder);
}

bool may_be_removed(const fs::path& folder) {
  std::error_code error;
  return fs::exists(folder / kManifestName, error) || holds_only_checkpoint_files(folder);
}

std::string reason_not_whole(const fs::path& folder) {
  try {
    const CheckpointReader reader(folder);
    return {};
  } catch (const InputError& error) {
    return error.what();
  }
}

// The checkpoint that a mark names.
std::string marked_name(const fs::path& file) {
  std::string name = read_file(file, kLargestMark);
  while (!name.empty() && name.back() == '\n') name.pop_back();
  if (!step_of(name)) {
    reject_input("{} must hold the name of a checkpoint such as {}", file.string(), checkpoint_name(100));
  }
  return name;
}

}  // namespace

std::string checkpoint_name(std::uint64_t step) { return fmt::format("{}{:0{}}", kPrefix, step, kDigits); }

std::string shard_name(int part, std::uint32_t index) {
  return fmt::format("{}{}-{}{}", kShardPrefix, part, index, kShardSuffix);
}

std::optional<std::uint64_t> step_of(const std::string& name) {
  if (!name.starts_with(kPrefix) || name.size() < kPrefix.size() + kDigits) return std::nullopt;
  std::uint64_t step = 0;
  const char* const end = name.data() + name.size();
  const auto [stop, error] = std::from_chars(name.data() + kPrefix.size(), end, step);
  if (error != std::errc{} || stop != end || checkpoint_name(step) != name) return std::nullopt;
  return step;
}

std::vector<CheckpointPlace> list_checkpoints(const fs::path& directory) {
  std::vector<CheckpointPlace> places;
  std::error_code error;
  for (fs::directory_iterator entry(directory, error), end; !error && entry != end; entry.increment(error)) {
    std::error_code ignored;
    const auto step = step_of(entry->path().filename().string());
    if (step && entry->is_directory(ignored)) places.push_back({*step, entry->path()});
  }
  if (error && error != std::errc::no_such_file_or_directory) {
    reject_input("cannot list {}: {}", directory.string(), error.message());
  }
  std::sort(places.begin(), places.end(), [](const auto& one, const auto& other) { return one.step < other.step; });
  return places;
}

LatestCheckpoint latest_checkpoint(const fs::path& directory, std::uint64_t before_step) {
  LatestCheckpoint latest;
  const std::vector<CheckpointPlace> places = list_checkpoints(directory);
  for (auto place = places.rbegin(); place != places.rend(); ++place) {
    if (place->step >= before_step) continue;
    std::string reason = reason_not_whole(place->folder);
    if (reason.empty()) {
      latest.place = *place;
      break;
    }
    latest.passed_over.push_back(std::move(reason));
  }
  return latest;
}

void check_best_mark(const fs::path& directory) {
  const fs::path file = directory / kBestFile;
  std::error_code error;
  const fs::file_status status = fs::symlink_status(file, error);
  if (!fs::exists(status)) return;
  if (!fs::is_regular_file(status)) {
    reject_input("{} is in the way of the mark of the best checkpoint; move it, or name another directory",
                 file.string());
  }
  marked_name(file);
}

void mark_best_checkpoint(const fs::path& directory, std::uint64_t step) {
  write_file_atomically(directory / kBestFile, checkpoint_name(step) + "\n");
}

void unmark_best_checkpoint(const fs::path& directory) {
  check_best_mark(directory);
  std::error_code error;
  if (fs::remove(directory / kBestFile, error)) sync_folder(directory);
  if (error) fail("cannot remove {}: {}", (directory / kBestFile).string(), error.message());
}

std::optional<CheckpointPlace> best_checkpoint(const fs::path& directory) {
  const fs::path file = directory / kBestFile;
  std::error_code error;
  if (!fs::exists(file, error)) return std::nullopt;
  const std::string name = marked_name(file);
  if (!fs::is_directory(directory / name, error)) return std::nullopt;
  return CheckpointPlace{*step_of(name), directory / name};
}

void prune_checkpoints(const fs::path& directory, std::uint32_t keep) {
  if (keep == 0) return;
  const auto best = best_checkpoint(directory);
  const std::vector<CheckpointPlace> places = list_checkpoints(directory);
  std::uint32_t kept = 0;
  for (auto place = places.rbegin(); place != places.rend(); ++place) {
    if (kept < keep) {
      if (reason_not_whole(place->folder).empty()) ++kept;
    } else if ((!best || best->step != place->step) && may_be_removed(place->folder)) {
      const fs::path hidden = partial_folder_of(place->folder);
      remove_folder(hidden);
      rename_file(place->folder, hidden);
      remove_folder(hidden);
    }
  }
}

fs::path partial_folder_of(const fs::path& folder) {
  return hidden_sibling(without_trailing_slash(folder), kPartialSuffix);
}

fs::path replaced_folder_of(const fs::path& folder) {
  return hidden_sibling(without_trailing_slash(folder), kReplacedSuffix);
}

fs::path without_trailing_slash(const fs::path& folder) {
  return folder.has_filename() ? folder : folder.parent_path();
}

void clear_interrupted_save(const fs::path& folder) {
  std::error_code error;
  remove_folder(partial_folder_of(folder));
  if (const fs::path replaced = replaced_folder_of(folder); fs::exists(replaced, error)) {
    restore_or_remove(replaced, without_trailing_slash(folder));
  }
}

void clear_interrupted_saves(const fs::path& directory) {
  std::set<std::string> steps;
  std::error_code error;
  for (fs::directory_iterator entry(directory, error), end; !error && entry != end; entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    for (const std::string_view suffix : {kPartialSuffix, kReplacedSuffix}) {
      if (const std::string step = hidden_name(name, suffix); step_of(step)) steps.insert(step);
    }
  }
  if (error) fail("cannot list {}: {}", directory.string(), error.message());
  for (const std::string& step : steps) clear_interrupted_save(directory / step);
}

bool holds_only_checkpoint_files(const fs::path& folder) {
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    std::error_code unknown;
    const bool is_plain = entry->symlink_status(unknown).type() == fs::file_type::regular;
    const std::string name = entry->path().filename().string();
    if (!is_plain || (name != kManifestName && !is_shard_name(name))) return false;
  }
  if (error) fail("cannot list {}: {}", folder.string(), error.message());
  return true;
}

fs::path set_aside(const fs::path& path) {
  fs::path aside = path;
  aside += ".set-aside";
  std::error_code error;
  for (int number = 2; fs::exists(fs::symlink_status(aside, error)); ++number) {
    aside = path;
    aside += fmt::format(".set-aside-{}", number);
  }
  rename_file(path, aside);
  return aside;
}

}  // namespace kvloom
