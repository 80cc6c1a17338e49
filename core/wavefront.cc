#include "core/wavefront.h"

#include <algorithm>

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

void WavefrontPass::note(int source, std::span<const KvMovement> key, std::span<const KvMovement> value) {
  sources_.push_back({source, {key.begin(), key.end()}, {value.begin(), value.end()}});
}

void WavefrontPass::measure(const BlockScale& scale) {
  for (const OfSource& source : sources_) {
    BlockScale::Largest largest;
    if (const auto known = scale.of_source_.find(source.source); known != scale.of_source_.end()) {
      largest = known->second;
    }
    largest = {largest_of(source.key, largest.key), largest_of(source.value, largest.value)};
    moves_.resize(source.key.size(), 0.0f);
    for (std::size_t row = 0; row < moves_.size(); ++row) {
      moves_[row] =
          std::max({moves_[row], relative(source.key[row], largest.key), relative(source.value[row], largest.value)});
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
    BlockScale::Largest& largest = scale.of_source_[source.source];
    largest.key = largest_of(std::span(source.key).first(count), largest.key);
    largest.value = largest_of(std::span(source.value).first(count), largest.value);
  }
}

}  // namespace kvloom
