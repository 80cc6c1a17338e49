// Whether every byte of a checkpoint is what was written.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>

namespace kvloom {

struct VerifyProgress {
  std::uint64_t bytes;  // of shard files
  std::uint64_t of_bytes;
};

// Reads every shard file and every slice with `threads` threads, at least one, and checks all checksums. Throws
// InputError naming the first damaged file in the manifest's order. `progress` comes from any of the threads, one at a
// time.
void verify_checkpoint(const std::filesystem::path& folder, int threads,
                       const std::function<void(const VerifyProgress&)>& progress = {});

}  // namespace kvloom
