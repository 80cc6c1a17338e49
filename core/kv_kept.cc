#include "core/kv_kept.h"

#include <fmt/format.h>

#include <algorithm>

namespace kvloom {

std::vector<KvKept> kv_kept(const ModelConfig& config, KvFormat format, std::int64_t positions) {
  std::vector<KvKept> kept;
  for (ReachGroup& group : reach_groups(config.kv_map)) {
    const std::int64_t own = group.reach == 0 ? positions : std::min(positions, group.reach);
    const std::int64_t bytes = own * kv_bytes_per_position(group, format, config.kv_heads, config.head_dim);
    kept.push_back({std::move(group), own, bytes});
  }
  return kept;
}

std::string joined_runs(const std::vector<int>& numbers) {
  std::string text;
  for (std::size_t i = 0; i < numbers.size();) {
    std::size_t end = i + 1;
    while (end < numbers.size() && numbers[end] == numbers[end - 1] + 1) ++end;
    const char* separator = text.empty() ? "" : ",";
    if (end - i >= 3) {
      text += fmt::format("{}{}..{}", separator, numbers[i], numbers[end - 1]);
    } else {
      end = i + 1;
      text += fmt::format("{}{}", separator, numbers[i]);
    }
    i = end;
  }
  return text;
}

namespace {

std::string pools_text(const ReachGroup& group) {
  const auto& [keys, values] = group.sources;
  if (keys == values) return fmt::format("{} {}", keys.size() == 1 ? "source" : "sources", joined_runs(keys));
  if (values.empty()) return fmt::format("K of {}", joined_runs(keys));
  if (keys.empty()) return fmt::format("V of {}", joined_runs(values));
  return fmt::format("K of {} and V of {}", joined_runs(keys), joined_runs(values));
}

}  // namespace

std::vector<std::string> reach_lines(const KvMap& map) {
  std::vector<std::string> lines;
  for (const ReachGroup& group : reach_groups(map)) {
    lines.push_back(fmt::format(
        "{}: {}", pools_text(group),
        group.reach == 0 ? std::string("every position") : fmt::format("the last {} positions", group.reach)));
  }
  return lines;
}

}  // namespace kvloom
