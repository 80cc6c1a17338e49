#include "data/dataset.h"

#include <algorithm>
#include <bit>
#include <utility>
#include <vector>

#include "kernels/cross_entropy.h"
#include "kernels/random.h"

namespace kvloom {

Permutation::Permutation(std::uint64_t size, std::uint64_t key)
    : size_(size), key_(key), half_bits_(std::max(1, (static_cast<int>(std::bit_width(size - 1)) + 1) / 2)) {}

std::uint64_t Permutation::operator()(std::uint64_t index) const {
  const std::uint64_t mask = (std::uint64_t{1} << half_bits_) - 1;
  do {
    std::uint64_t left = index >> half_bits_;
    std::uint64_t right = index & mask;
    for (std::uint32_t round = 0; round < 6; ++round) {
      const RandomBlock mixed =
          philox({{static_cast<std::uint32_t>(right), static_cast<std::uint32_t>(right >> 32), round, 0}}, key_);
      const std::uint64_t word = (std::uint64_t{mixed.words[0]} << 32) | mixed.words[1];
      left = std::exchange(right, (left ^ word) & mask);
    }
    index = (left << half_bits_) | right;
  } while (index >= size_);  // the network permutes a power of four; walk until inside
  return index;
}

TokenWindows::TokenWindows(const TokenFile& file, std::int64_t context, std::uint64_t seed)
    : file_(file), context_(context), seed_(seed), windows_((file.count(Part::kTraining) - 1) / context) {
  if (windows_ < 1) {
    reject_input("data.tokens: {} training tokens; a context of {} needs {} at least", file.count(Part::kTraining),
                 context, context + 1);
  }
}

void TokenWindows::fill(std::int64_t first, std::int64_t count, std::span<std::int32_t> tokens,
                        std::span<std::int32_t> targets) const {
  const auto context = static_cast<std::size_t>(context_);
  std::vector<std::int32_t> window(context + 1);
  for (std::int64_t n = 0; n < count; ++n) {
    const auto epoch = static_cast<std::uint64_t>((first + n) / windows_);
    const Permutation permutation(static_cast<std::uint64_t>(windows_),
                                  seed_ ^ stream_id(fmt::format("epoch {}", epoch)));
    const std::uint64_t index = permutation(static_cast<std::uint64_t>((first + n) % windows_));
    file_.read(Part::kTraining, static_cast<std::int64_t>(index) * context_, window);
    const std::size_t at = static_cast<std::size_t>(n) * context;
    std::copy(window.begin(), window.end() - 1, tokens.begin() + static_cast<std::ptrdiff_t>(at));
    std::copy(window.begin() + 1, window.end(), targets.begin() + static_cast<std::ptrdiff_t>(at));
  }
}

EvaluationWindows::EvaluationWindows(const TokenFile& file, Part part, std::int64_t context)
    : file_(file), part_(part), context_(context) {
  if (file.count(part) < 2) {
    reject_input("{} tokens of {}: evaluation needs two at least", file.count(part),
                 part == Part::kTraining ? "training" : "validation (make some with kvloom tokenize --valid-fraction)");
  }
}

std::int64_t EvaluationWindows::size() const { return (file_.count(part_) - 1 + context_ - 1) / context_; }

void EvaluationWindows::fill(std::int64_t index, std::span<std::int32_t> tokens,
                             std::span<std::int32_t> targets) const {
  const std::int64_t begin = index * context_;
  const auto length = static_cast<std::size_t>(std::min(context_, file_.count(part_) - 1 - begin));
  std::vector<std::int32_t> window(length + 1);
  file_.read(part_, begin, window);
  std::ranges::fill(tokens, 0);
  std::ranges::fill(targets, kIgnoredTarget);
  std::copy(window.begin(), window.end() - 1, tokens.begin());
  std::copy(window.begin() + 1, window.end(), targets.begin());
}

}  // namespace kvloom
