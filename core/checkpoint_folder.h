// Checkpoints of one run side by side: `step-00000100`, `step-00000200`, ...; which is newest, which is best, which go.
#pragma once

#include <cstdint>
#include <filesystem>
#include <limits>
#include <optional>
#include <string>
#include <vector>

namespace kvloom {

// "step-00000100", at least eight digits.
std::string checkpoint_name(std::uint64_t step);
// The step of such a name; nothing for any other.
std::optional<std::uint64_t> step_of(const std::string& name);

// The name of a checkpoint's shard file: "shard-<part>-<index>.h5".
std::string shard_name(int part, std::uint32_t index);

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
// The newest that a CheckpointReader opens: a sound manifest and every file of the right size. Of those of steps below
// `before_step`.
LatestCheckpoint latest_checkpoint(const std::filesystem::path& directory,
                                   std::uint64_t before_step = std::numeric_limits<std::uint64_t>::max());

// The best checkpoint's name stands in the file `best` of the directory.
void mark_best_checkpoint(const std::filesystem::path& directory, std::uint64_t step);
// Throws InputError where something stands in the place of that file that marks no checkpoint: it is someone else's.
void check_best_mark(const std::filesystem::path& directory);
// None is the best. What is no mark stays, as check_best_mark says.
void unmark_best_checkpoint(const std::filesystem::path& directory);
std::optional<CheckpointPlace> best_checkpoint(const std::filesystem::path& directory);

// Removes what is older than the newest `keep` whole checkpoints, except the best, and except folders without a
// manifest that hold other files than a save's. 0 keeps all. A checkpoint is renamed away before its files go, so none
// is ever seen half removed.
void prune_checkpoints(const std::filesystem::path& directory, std::uint32_t keep);

// Hidden siblings of a checkpoint folder: where it is written, and where an old one waits while a new one takes its
// place on file systems that cannot exchange them.
std::filesystem::path partial_folder_of(const std::filesystem::path& folder);
std::filesystem::path replaced_folder_of(const std::filesystem::path& folder);
std::filesystem::path without_trailing_slash(const std::filesystem::path& folder);

// Removes what an interrupted save left beside `folder`, or brings back the old checkpoint that was being replaced. For
// the one who writes `folder`.
void clear_interrupted_save(const std::filesystem::path& folder);

// The same for every step of `directory`. For the one who writes them all (train/output_lock.h).
void clear_interrupted_saves(const std::filesystem::path& directory);

// Whether nothing is in the folder but what a save writes there: a manifest, shard files, or not even these.
bool holds_only_checkpoint_files(const std::filesystem::path& folder);

// Gives what stands at `path` the name "<name>.set-aside", or if that is taken "<name>.set-aside-2", ..., and returns
// it.
std::filesystem::path set_aside(const std::filesystem::path& path);

}  // namespace kvloom
