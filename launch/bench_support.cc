#include "launch/bench_support.h"

#include <algorithm>
#include <utility>

#include "core/ops.h"
#include "kernels/random.h"
#include "kernels/reduce.h"

namespace kvloom {
namespace {

constexpr int kRounds = 4;  // the first one is not counted

// Values of a normal distribution: products of zeros draw less power on a GPU, and so run faster, than any others.
Tensor normal_matrix(Allocator& allocator, std::int64_t rows, std::int64_t columns, DType dtype) {
  std::vector<float> values(static_cast<std::size_t>(rows * columns));
  cpu::run(FillNormal{.output = values.data(), .count = rows * columns, .seed = 1, .stream = 1, .stddev = 0.02f});
  const Tensor exact = Tensor::of<float>(allocator, {rows, columns}, values);
  Tensor result = Tensor::empty(allocator, {rows, columns}, dtype);
  ops::copy(exact, result);
  return result;
}

double best_seconds(const Allocator& allocator, const auto& work) {
  seconds_of(allocator, work);
  double best = seconds_of(allocator, work);
  for (int round = 2; round < kRounds; ++round) best = std::min(best, seconds_of(allocator, work));
  return best;
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

double measured_memory_rate(Allocator& allocator) {
  constexpr std::int64_t kCount = std::int64_t{128} << 20;  // 512 MiB: beyond the caches of any processor
  const Tensor from = Tensor::zeros(allocator, {kCount}, DType::kF32);
  Tensor to = Tensor::zeros(allocator, {kCount}, DType::kF32);
  const double copied = best_seconds(allocator, [&] { ops::copy(from, to); });
  double sum = 0;
  const SumOfSquares reads{.data = from.as<float>().data(), .count = kCount, .result = &sum};
  const double read = best_seconds(allocator, [&] { ops::run(from.device(), reads); });
  const auto bytes = static_cast<double>(from.bytes());
  return std::max(2 * bytes / copied, bytes / read);
}

std::vector<std::int32_t> random_tokens(std::int64_t count, std::int64_t vocab, std::uint64_t stream) {
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = static_cast<std::int32_t>(uniform(1, stream, i) * static_cast<double>(vocab));
  }
  return tokens;
}

}  // namespace kvloom
