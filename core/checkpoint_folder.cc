#include "core/checkpoint_folder.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <string_view>
#include <system_error>

#include "core/checkpoint_reader.h"
#include "core/file.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "step-";
constexpr std::size_t kDigits = 8;
constexpr std::string_view kBestFile = "best";
constexpr std::string_view kPartialSuffix = ".partial";
constexpr std::string_view kReplacedSuffix = ".replaced";

fs::path hidden_sibling(const fs::path& folder, std::string_view suffix) {
  const fs::path plain = without_trailing_slash(folder);
  return plain.parent_path() / fmt::format(".{}{}", plain.filename().string(), suffix);
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

std::string reason_not_whole(const fs::path& folder) {
  try {
    const CheckpointReader reader(folder);
    return {};
  } catch (const InputError& error) {
    return error.what();
  }
}

}  // namespace

std::string checkpoint_name(std::uint64_t step) { return fmt::format("{}{:0{}}", kPrefix, step, kDigits); }

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

LatestCheckpoint latest_checkpoint(const fs::path& directory) {
  LatestCheckpoint latest;
  const std::vector<CheckpointPlace> places = list_checkpoints(directory);
  for (auto place = places.rbegin(); place != places.rend(); ++place) {
    std::string reason = reason_not_whole(place->folder);
    if (reason.empty()) {
      latest.place = *place;
      break;
    }
    latest.passed_over.push_back(std::move(reason));
  }
  return latest;
}

void mark_best_checkpoint(const fs::path& directory, std::uint64_t step) {
  write_file_atomically(directory / kBestFile, checkpoint_name(step) + "\n");
}

std::optional<CheckpointPlace> best_checkpoint(const fs::path& directory) {
  const fs::path file = directory / kBestFile;
  std::error_code error;
  if (!fs::exists(file, error)) return std::nullopt;
  std::string name = read_file(file, 64);
  while (!name.empty() && name.back() == '\n') name.pop_back();
  const auto step = step_of(name);
  if (!step) reject_input("{} must hold the name of a checkpoint such as {}", file.string(), checkpoint_name(100));
  if (!fs::is_directory(directory / name, error)) return std::nullopt;
  return CheckpointPlace{*step, directory / name};
}

void prune_checkpoints(const fs::path& directory, std::uint32_t keep) {
  if (keep == 0) return;
  const auto best = best_checkpoint(directory);
  const std::vector<CheckpointPlace> places = list_checkpoints(directory);
  std::uint32_t kept = 0;
  for (auto place = places.rbegin(); place != places.rend(); ++place) {
    if (kept < keep) {
      if (reason_not_whole(place->folder).empty()) ++kept;
    } else if (!best || best->step != place->step) {
      const fs::path hidden = partial_folder_of(place->folder);
      remove_folder(hidden);
      rename_file(place->folder, hidden);
      remove_folder(hidden);
    }
  }
}

fs::path partial_folder_of(const fs::path& folder) { return hidden_sibling(folder, kPartialSuffix); }

fs::path replaced_folder_of(const fs::path& folder) { return hidden_sibling(folder, kReplacedSuffix); }

fs::path without_trailing_slash(const fs::path& folder) {
  return folder.has_filename() ? folder : folder.parent_path();
}

void clear_interrupted_saves(const fs::path& folder) {
  const fs::path plain = without_trailing_slash(folder);
  const auto is_ours = [&](const std::string& name) { return name == plain.filename() || step_of(name).has_value(); };
  std::vector<fs::path> entries;
  std::error_code error;
  for (fs::directory_iterator entry(parent_of(plain), error), end; !error && entry != end; entry.increment(error)) {
    entries.push_back(entry->path());
  }
  if (error) fail("cannot list {}: {}", parent_of(plain).string(), error.message());
  for (const fs::path& entry : entries) {
    const std::string name = entry.filename().string();
    if (const auto whole = hidden_name(name, kPartialSuffix); is_ours(whole)) remove_folder(entry);
    if (const auto whole = hidden_name(name, kReplacedSuffix); is_ours(whole)) {
      restore_or_remove(entry, entry.parent_path() / whole);
    }
  }
}

}  // namespace kvloom
