// What is kept of K and V for one sequence, source by source (KvMap::reach): what `kvloom kvmap`, `inspect` and `plan`
// print, and what the engine's pages hold.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/config.h"
#include "core/kv_pages.h"

namespace kvloom {

// Sources of equal reach, after so many positions.
struct KvKept {
  ReachGroup group;
  std::int64_t positions;  // that each of them keeps
  std::int64_t bytes;      // of all of them
};

// The groups of the model's map, the widest reach first; their bytes sum to kv_bytes.
std::vector<KvKept> kv_kept(const ModelConfig& config, KvFormat format, std::int64_t positions);

// A line a group: "sources 0,5,11: every position", "sources 1..4: the last 128 positions", or where the keys that
// reach so far are not the values' "K of 3 and V of 0,3: every position".
std::vector<std::string> reach_lines(const KvMap& map);

// Ascending numbers, runs of three and more joined: "0,4..7,11".
std::string joined_runs(const std::vector<int>& numbers);

}  // namespace kvloom
