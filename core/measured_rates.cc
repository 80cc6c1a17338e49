#include "core/measured_rates.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <span>
#include <utility>

#include "core/ops.h"
#include "kernels/random.h"

namespace kvloom {
namespace {

// Of one `work`: the best of several rounds, each long enough that starting and waiting do not count.
double best_seconds(const Allocator& allocator, const auto& work) {
  constexpr int kRounds = 5;
  constexpr double kRoundSeconds = 0.02;
  double best = seconds_of(allocator, work);  // loads kernels, makes plans
  int count = 1;
  for (int round = 0; round < kRounds; ++round) {
    const double seconds = seconds_of(allocator, [&] {
      for (int i = 0; i < count; ++i) work();
    });
    best = std::min(best, seconds / count);
    count = std::clamp(static_cast<int>(std::ceil(kRoundSeconds / best)), 1, 10000);
  }
  return best;
}

// Values of a normal distribution: products of zeros draw less power on a GPU, and so run faster, than any others.
Tensor normal_matrix(Allocator& allocator, std::int64_t rows, std::int64_t columns, DType dtype) {
  const std::int64_t count = rows * columns;
  std::int64_t filled = std::min<std::int64_t>(count, 1 << 20);
  std::vector<float> values(static_cast<std::size_t>(filled));
  cpu::run(FillNormal{.output = values.data(), .count = filled, .seed = 1, .stream = 1, .stddev = 0.02f});
  Tensor result = Tensor::empty(allocator, {count}, dtype);
  Tensor first = result.rows(0, filled);
  ops::copy(Tensor::of<float>(allocator, {filled}, values), first);
  for (; filled < count; filled *= 2) {
    Tensor next = result.rows(filled, std::min(count, 2 * filled));
    ops::copy(result.rows(0, next.count()), next);
  }
  return result.reshaped({rows, columns});
}

// Reads all of it on all cores, each in several places at once, as products with few rows do: memory gives more so.
std::uint64_t sum_of_words(std::span<const std::uint64_t> words) {
  constexpr std::size_t kStreams = 8;
  constexpr std::size_t kPiece = std::size_t{1} << 18;  // 2 MiB
  const std::size_t pieces = words.size() / (kStreams * kPiece);
  std::uint64_t sum = 0;
#pragma omp parallel for schedule(static) reduction(+ : sum)
  for (std::size_t piece = 0; piece < pieces; ++piece) {
    const std::uint64_t* start = words.data() + piece * kStreams * kPiece;
    std::array<std::uint64_t, kStreams> sums{};
    for (std::size_t i = 0; i < kPiece; ++i) {
      for (std::size_t stream = 0; stream < kStreams; ++stream) sums[stream] += start[stream * kPiece + i];
    }
    for (const std::uint64_t part : sums) sum += part;
  }
  return sum;
}

}  // namespace

double measured_product_rate(const ModelConfig& config, std::int64_t rows, DType dtype, Allocator& allocator) {
  double best = 0;
  for (const auto& [out, in] : {std::pair(config.hidden, config.hidden), std::pair(2 * config.ffn, config.hidden),
                                std::pair(config.hidden, config.ffn)}) {
    const Tensor input = normal_matrix(allocator, rows, in, dtype);
    const Tensor weight = normal_matrix(allocator, out, in, dtype);
    Tensor output = Tensor::empty(allocator, {rows, out}, dtype);
    const double seconds = best_seconds(allocator, [&] { ops::linear(input, weight, output); });
    best = std::max(best, 2.0 * static_cast<double>(rows * out * in) / seconds);
  }
  return best;
}

MemoryRates measured_memory_rates(Allocator& allocator) {
  constexpr std::int64_t kCount = std::int64_t{128} << 20;  // 512 MiB
  const Tensor from = Tensor::zeros(allocator, {kCount}, DType::kF32);
  Tensor to = Tensor::zeros(allocator, {kCount}, DType::kF32);
  const auto bytes = static_cast<double>(from.bytes());
  MemoryRates rates;
  rates.copy = 2 * bytes / best_seconds(allocator, [&] { ops::copy(from, to); });
  rates.best = rates.copy;
  if (allocator.device().kind != Device::Kind::kCpu) return rates;
  const std::span words(static_cast<const std::uint64_t*>(from.data()), from.bytes() / sizeof(std::uint64_t));
  volatile std::uint64_t sum = 0;  // so that it is wanted
  rates.best = std::max(rates.best, bytes / best_seconds(allocator, [&] { sum = sum_of_words(words); }));
  return rates;
}

std::vector<std::int32_t> random_tokens(std::int64_t count, std::int64_t vocab, std::uint64_t stream) {
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = static_cast<std::int32_t>(uniform(1, stream, i) * static_cast<double>(vocab));
  }
  return tokens;
}

}  // namespace kvloom
