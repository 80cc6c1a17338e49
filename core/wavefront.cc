#include "core/wavefront.h"

#include <algorithm>
#include <utility>

namespace kvloom {
namespace {

float largest_of(std::span<const KvMovement> rows, float before) {
  for (const KvMovement& row : rows) before = std::max(before, row.value);
  return before;
}

float relative(const KvMovement& movement, float largest) {
  return movement.difference == 0 ? 0.0f : movement.difference / largest;
}

}  // namespace

void BlockScale::begin(int first, int end) {
  std::erase_if(of_source_, [&](const auto& entry) { return entry.first >= first && entry.first < end; });
}

void WavefrontPass::note(int source, const ByPart<std::span<const KvMovement>>& moves) {
  OfSource noted{source, {}};
  for (const KvPart part : kKvParts) noted.moves[part].assign(moves[part].begin(), moves[part].end());
  sources_.push_back(std::move(noted));
}

void WavefrontPass::measure(const BlockScale& scale) {
  for (const OfSource& source : sources_) {
    ByPart<float> largest;
    if (const auto known = scale.of_source_.find(source.source); known != scale.of_source_.end()) {
      largest = known->second;
    }
    for (const KvPart part : kKvParts) {
      const std::vector<KvMovement>& moves = source.moves[part];
      largest[part] = largest_of(moves, largest[part]);
      moves_.resize(std::max(moves_.size(), moves.size()), 0.0f);
      for (std::size_t row = 0; row < moves.size(); ++row) {
        moves_[row] = std::max(moves_[row], relative(moves[row], largest[part]));
      }
    }
  }
}

std::int64_t WavefrontPass::settled(float tolerance) const {
  const auto moved = std::ranges::find_if(moves_, [&](float move) { return !(move <= tolerance); });
  return std::min<std::int64_t>(moved - moves_.begin() + 1, std::ssize(moves_));
}

float WavefrontPass::residual(std::int64_t rows) const {
  return *std::max_element(moves_.begin(), moves_.begin() + rows);
}

void WavefrontPass::settle(std::int64_t rows, BlockScale& scale) const {
  const auto count = static_cast<std::size_t>(rows);
  for (const OfSource& source : sources_) {
    ByPart<float>& largest = scale.of_source_[source.source];
    for (const KvPart part : kKvParts) {
      const std::span<const KvMovement> moves = source.moves[part];
      largest[part] = largest_of(moves.first(std::min(count, moves.size())), largest[part]);
    }
  }
}

}  // namespace kvloom
