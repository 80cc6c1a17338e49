#include "launch/passes_option.h"

#include <algorithm>

#include "kernels/error.h"

namespace kvloom {

Passes passes_for(const std::optional<int>& given, const Passes& trained) {
  if (!given.has_value()) return trained;
  if (*given < 1 || *given > kMostPasses) reject_input("--passes: {}; right is 1 to {}", *given, kMostPasses);
  return {.without_gradient = *given - 1, .with_gradient = 1};
}

int passes_that_run(const KvMap& map, const Passes& passes, std::int64_t positions) {
  const bool iterated = std::ranges::any_of(segments_of(map), &Segment::iterated);
  const std::int64_t all = std::int64_t{passes.without_gradient} + passes.with_gradient;
  return iterated ? static_cast<int>(std::min(all, positions)) : 1;
}

}  // namespace kvloom
