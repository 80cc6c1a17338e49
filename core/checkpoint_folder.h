// Checkpoints of one run side by side: `step-00000100`, `step-00000200`, ...; which is newest, which is best, which go.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace kvloom {

// "step-00000100", at least eight digits.
std::string checkpoint_name(std::uint64_t step);
// The step of such a name; nothing for any other.
std::optional<std::uint64_t> step_of(const std::string& name);

struct CheckpointPlace {
  std::uint64_t step;
  std::filesystem::path folder;
};

// Every checkpoint-named folder in `directory`, oldest first, whole or not. Empty if there is no such directory.
std::vector<CheckpointPlace> list_checkpoints(const std::filesystem::path& directory);

struct LatestCheckpoint {
  std::optional<CheckpointPlace> place;
  std::vector<std::string> passed_over;  // why newer ones were not taken, a line each
};
// The newest that a CheckpointReader opens: a sound manifest and every file of the right size.
LatestCheckpoint latest_checkpoint(const std::filesystem::path& directory);

// The best checkpoint's name stands in the file `best` of the directory.
void mark_best_checkpoint(const std::filesystem::path& directory, std::uint64_t step);
std::optional<CheckpointPlace> best_checkpoint(const std::filesystem::path& directory);

// Removes what is older than the newest `keep` whole checkpoints, except the best. 0 keeps all. A checkpoint is renamed
// away before its files go, so none is ever seen half removed.
void prune_checkpoints(const std::filesystem::path& directory, std::uint32_t keep);

// Hidden siblings of a checkpoint folder: where it is written, and where an old one waits while a new one takes its
// place on file systems that cannot exchange them.
std::filesystem::path partial_folder_of(const std::filesystem::path& folder);
std::filesystem::path replaced_folder_of(const std::filesystem::path& folder);
std::filesystem::path without_trailing_slash(const std::filesystem::path& folder);

// Removes the partial folders of `folder` and of step-named siblings, and brings back or removes an old checkpoint that
// was being replaced.
void clear_interrupted_saves(const std::filesystem::path& folder);

}  // namespace kvloom
