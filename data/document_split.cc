#include "data/document_split.h"

#include <algorithm>
#include <numeric>

#include "kernels/random.h"

namespace kvloom {
namespace {

constexpr std::uint64_t kStream = stream_id("document_split");

// Documents that have bytes, in the order in which they are tried.
std::vector<std::size_t> drawn_order(std::span<const std::uint64_t> sizes, std::uint64_t seed) {
  std::vector<std::pair<double, std::size_t>> drawn;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] > 0) drawn.emplace_back(uniform(seed, kStream, i), i);
  }
  std::ranges::sort(drawn);
  std::vector<std::size_t> order;
  order.reserve(drawn.size());
  for (const auto& [value, index] : drawn) order.push_back(index);
  return order;
}

}  // namespace

std::vector<std::uint64_t> split_documents(std::span<const std::uint64_t> sizes, double fraction, std::uint64_t seed) {
  std::vector<std::uint64_t> training(sizes.begin(), sizes.end());
  const std::uint64_t total = std::accumulate(sizes.begin(), sizes.end(), std::uint64_t{0});
  const auto wanted = static_cast<std::uint64_t>(fraction * static_cast<double>(total));
  std::uint64_t taken = 0;
  std::size_t next = sizes.size();  // the first that did not fit
  for (const std::size_t i : drawn_order(sizes, seed)) {
    if (sizes[i] <= wanted - taken) {
      training[i] = 0;
      taken += sizes[i];
    } else if (2 * taken >= wanted) {
      return training;
    } else if (next == sizes.size()) {
      next = i;
    }
  }
  if (2 * taken < wanted) training[next] -= wanted - taken;
  return training;
}

double draw_of(std::uint64_t document, std::uint64_t seed) { return uniform(seed, kStream, document); }

double held_out_below(std::uint64_t count, double fraction, std::uint64_t seed) {
  constexpr std::uint64_t kCounted = 1'000'000;
  if (fraction <= 0 || count < 2) return 0;
  if (count > kCounted) return fraction;
  const auto wanted = std::max<std::uint64_t>(1, static_cast<std::uint64_t>(fraction * static_cast<double>(count)));
  std::vector<double> draws(count);
  for (std::uint64_t i = 0; i < count; ++i) draws[i] = draw_of(i, seed);
  const auto first_kept = draws.begin() + static_cast<std::ptrdiff_t>(wanted);
  std::ranges::nth_element(draws, first_kept);
  return *first_kept;
}

}  // namespace kvloom
