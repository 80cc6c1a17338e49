// How fast the memory-bound kernels run: `best_rate`, bytes a second, and `of_copy`, its part of what a plain copy with
// as many threads moves in a working set of the same size. Sizes: one that stays in caches, one that does not.
#include <benchmark/benchmark.h>
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "kernels/adamw.h"
#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/reduce.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"

namespace kvloom {
namespace {

constexpr std::int64_t kCached = 1 << 18;  // elements a buffer
constexpr std::int64_t kStreamed = 1 << 24;

// Starts where a cache line does, as tensors do.
template <typename T>
struct CacheLineAllocator {
  using value_type = T;
  static constexpr std::align_val_t kLine{64};
  T* allocate(std::size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kLine)); }
  void deallocate(T* data, std::size_t) { ::operator delete(data, kLine); }
  bool operator==(const CacheLineAllocator&) const = default;
};
template <typename T>
using Buffer = std::vector<T, CacheLineAllocator<T>>;

template <typename T>
Buffer<T> noise(std::int64_t count) {
  std::minstd_rand engine(1);
  Buffer<T> values(static_cast<std::size_t>(count));
  for (T& value : values) value = T(static_cast<float>(engine() % 2048) / 512.0f - 2.0f);
  return values;
}

double seconds_of(const std::function<void()>& operation) {
  const auto start = std::chrono::steady_clock::now();
  operation();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void copy(const Buffer<char>& from, Buffer<char>& to) {
#pragma omp parallel
  {
    const auto threads = static_cast<std::size_t>(omp_get_num_threads());
    const std::size_t piece = from.size() / threads;
    const std::size_t begin = static_cast<std::size_t>(omp_get_thread_num()) * piece;
    std::memcpy(to.data() + begin, from.data() + begin, piece);
  }
}

// Bytes a second, read and written, that copies within `bytes` of memory reach.
double copy_rate(std::size_t bytes) {
  static std::map<std::size_t, double> known;
  double& rate = known[bytes];
  if (rate > 0) return rate;
  Buffer<char> from(bytes / 2, 1);
  Buffer<char> to(from.size());
  const auto times = std::clamp<std::size_t>((std::size_t{1} << 32) / bytes, 20, 2000);
  for (std::size_t i = 0; i < times; ++i) {
    rate = std::max(rate, static_cast<double>(bytes) / seconds_of([&] { copy(from, to); }));
  }
  return rate;
}

// Times one operation that reads and writes `bytes`. The best of many counts: others may use the machine.
void measure(benchmark::State& state, std::size_t bytes, const std::function<void()>& operation) {
  double best = seconds_of(operation);
  for (auto _ : state) {
    const double seconds = seconds_of(operation);
    state.SetIterationTime(seconds);
    best = std::min(best, seconds);
  }
  const double rate = static_cast<double>(bytes) / best;
  state.counters["best_rate"] = benchmark::Counter(rate, benchmark::Counter::kDefaults, benchmark::Counter::kIs1000);
  state.counters["of_copy"] = rate / copy_rate(bytes);
}

template <typename T>
void rms_norm_forward(benchmark::State& state) {
  constexpr std::int64_t kColumns = 1024;
  const auto input = noise<T>(state.range(0));
  auto output = input;
  const auto gain = noise<float>(kColumns);
  const std::int64_t rows = state.range(0) / kColumns;
  Buffer<float> scale(static_cast<std::size_t>(rows));
  measure(state, 2 * input.size() * sizeof(T), [&] {
    cpu::run(RmsNormForward{input.data(), gain.data(), output.data(), scale.data(), rows, kColumns, 1e-5f,
                            DTypeOf<T>::value});
  });
}

template <typename T>
void rms_norm_backward(benchmark::State& state) {
  constexpr std::int64_t kColumns = 1024;
  const auto input = noise<T>(state.range(0));
  const auto grad = input;
  auto output = input;
  const auto gain = noise<float>(kColumns);
  auto grad_gain = gain;
  const std::int64_t rows = state.range(0) / kColumns;
  const Buffer<float> scale(static_cast<std::size_t>(rows), 0.5f);
  measure(state, 3 * input.size() * sizeof(T), [&] {
    cpu::run(RmsNormBackward{input.data(), gain.data(), scale.data(), grad.data(), output.data(), grad_gain.data(),
                             rows, kColumns, false, DTypeOf<T>::value});
  });
}

template <typename T>
void rope(benchmark::State& state) {
  constexpr std::int64_t kHeads = 16;
  constexpr std::int64_t kHeadDim = 64;
  constexpr std::int64_t kPositions = 512;
  auto data = noise<T>(state.range(0));
  const Buffer<float> table(kPositions * kHeadDim / 2, std::sqrt(0.5f));
  measure(state, 2 * data.size() * sizeof(T), [&] {
    cpu::run(Rope{data.data(), table.data(), table.data(), state.range(0) / (kHeads * kHeadDim), kHeads, kHeadDim,
                  kHeads * kHeadDim, 0, kPositions, Rotation::kForward, DTypeOf<T>::value});
  });
}

template <typename T>
void swiglu_forward(benchmark::State& state) {
  constexpr std::int64_t kColumns = 2752;
  const std::int64_t rows = state.range(0) / kColumns;
  const auto gate_up = noise<T>(2 * rows * kColumns);
  auto output = noise<T>(rows * kColumns);
  measure(state, 3 * output.size() * sizeof(T), [&] {
    cpu::run(SwigluForward{gate_up.data(), output.data(), rows, kColumns, DTypeOf<T>::value});
  });
}

template <typename T>
void swiglu_backward(benchmark::State& state) {
  constexpr std::int64_t kColumns = 2752;
  const std::int64_t rows = state.range(0) / kColumns;
  const auto gate_up = noise<T>(2 * rows * kColumns);
  const auto grad = noise<T>(rows * kColumns);
  auto grad_gate_up = gate_up;
  measure(state, 5 * grad.size() * sizeof(T), [&] {
    cpu::run(SwigluBackward{gate_up.data(), grad.data(), grad_gate_up.data(), rows, kColumns, DTypeOf<T>::value});
  });
}

// Statistics, then loss and gradient. Counted as two reads and a write.
template <typename T>
void cross_entropy(benchmark::State& state) {
  constexpr std::int64_t kVocab = 32000;
  const std::int64_t rows = state.range(0) / kVocab;
  const auto logits = noise<float>(rows * kVocab);
  auto grad = noise<T>(rows * kVocab);
  const Buffer<std::int32_t> targets(static_cast<std::size_t>(rows), 17);
  Buffer<float> maximum(targets.size());
  auto total = maximum;
  auto target_logit = maximum;
  auto loss = maximum;
  measure(state, logits.size() * (2 * sizeof(float) + sizeof(T)), [&] {
    cpu::run(CrossEntropyStatistics{logits.data(), targets.data(), maximum.data(), total.data(), target_logit.data(),
                                    rows, kVocab});
    cpu::run(CrossEntropy{logits.data(), targets.data(), maximum.data(), total.data(), target_logit.data(), loss.data(),
                          grad.data(), rows, kVocab, 0, 0.5f, DTypeOf<T>::value});
  });
}

void adamw(benchmark::State& state) {
  auto weight = noise<float>(state.range(0));
  auto momentum = weight;
  Buffer<float> variance(weight.size(), 1.0f);
  const auto gradient = weight;
  Buffer<BFloat16> copy(weight.size());
  measure(state, weight.size() * 30, [&] {
    cpu::run(AdamW{weight.data(), momentum.data(), variance.data(), gradient.data(), copy.data(), state.range(0), 10,
                   1e-3f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.5f});
  });
}

template <typename T>
void add(benchmark::State& state) {
  const auto a = noise<T>(state.range(0));
  const auto b = a;
  auto output = a;
  measure(state, 3 * a.size() * sizeof(T), [&] {
    cpu::run(Add{a.data(), b.data(), output.data(), state.range(0), DTypeOf<T>::value});
  });
}

template <typename In, typename Out>
void cast(benchmark::State& state) {
  const auto input = noise<In>(state.range(0));
  auto output = noise<Out>(state.range(0));
  measure(state, input.size() * (sizeof(In) + sizeof(Out)), [&] {
    cpu::run(Cast{input.data(), output.data(), 1, state.range(0), DTypeOf<In>::value, DTypeOf<Out>::value});
  });
}

template <typename T>
void bias_forward(benchmark::State& state) {
  constexpr std::int64_t kColumns = 1024;
  auto data = noise<T>(state.range(0));
  const Buffer<float> bias(kColumns, 0.0f);
  measure(state, 2 * data.size() * sizeof(T), [&] {
    cpu::run(BiasForward{data.data(), bias.data(), state.range(0) / kColumns, kColumns, kColumns, DTypeOf<T>::value});
  });
}

template <typename T>
void bias_backward(benchmark::State& state) {
  constexpr std::int64_t kColumns = 1024;
  const auto grad = noise<T>(state.range(0));
  Buffer<float> bias(kColumns, 0.0f);
  measure(state, grad.size() * sizeof(T), [&] {
    cpu::run(BiasBackward{grad.data(), bias.data(), state.range(0) / kColumns, kColumns, kColumns, DTypeOf<T>::value});
  });
}

void sum_of_squares(benchmark::State& state) {
  const auto data = noise<float>(state.range(0));
  double result = 0;
  measure(state, data.size() * sizeof(float), [&] {
    cpu::run(SumOfSquares{data.data(), state.range(0), &result});
    benchmark::DoNotOptimize(result);
  });
}

template <typename T>
void max_change(benchmark::State& state) {
  const auto a = noise<T>(state.range(0));
  const auto b = a;
  float change = 0;
  float size = 0;
  measure(state, 2 * a.size() * sizeof(T), [&] {
    cpu::run(MaxChange{a.data(), b.data(), state.range(0), &change, &size, DTypeOf<T>::value});
    benchmark::DoNotOptimize(change);
  });
}

// Random rows of a table of 8192.
template <typename T>
void embedding_backward(benchmark::State& state, std::int64_t columns) {
  constexpr std::int64_t kVocab = 8192;
  const std::int64_t rows = state.range(0) / columns;
  const auto grad = noise<T>(rows * columns);
  Buffer<float> table(static_cast<std::size_t>(kVocab * columns));
  Buffer<std::int32_t> tokens;
  std::minstd_rand engine(2);
  for (std::int64_t r = 0; r < rows; ++r) tokens.push_back(static_cast<std::int32_t>(engine() % kVocab));
  measure(state, grad.size() * (sizeof(T) + 8), [&] {
    cpu::run(EmbeddingBackward{tokens.data(), grad.data(), table.data(), rows, columns, kVocab, 0, DTypeOf<T>::value});
  });
}

using Benchmark = std::function<void(benchmark::State&)>;

void add_benchmark(const std::string& name, const Benchmark& run) {
  benchmark::RegisterBenchmark(name.c_str(), run)
      ->Arg(kCached)
      ->Arg(kStreamed)
      ->UseManualTime()
      ->Unit(benchmark::kMicrosecond);
}

template <typename T>
void add_benchmarks_of(const std::string& dtype) {
  add_benchmark("rms_norm_forward/" + dtype, rms_norm_forward<T>);
  add_benchmark("rms_norm_backward/" + dtype, rms_norm_backward<T>);
  add_benchmark("rope/" + dtype, rope<T>);
  add_benchmark("swiglu_forward/" + dtype, swiglu_forward<T>);
  add_benchmark("swiglu_backward/" + dtype, swiglu_backward<T>);
  add_benchmark("cross_entropy/" + dtype, cross_entropy<T>);
  add_benchmark("add/" + dtype, add<T>);
  add_benchmark("bias_forward/" + dtype, bias_forward<T>);
  add_benchmark("bias_backward/" + dtype, bias_backward<T>);
  add_benchmark("max_change/" + dtype, max_change<T>);
  for (const std::int64_t columns : {128, 1024}) {
    add_benchmark("embedding_backward_" + std::to_string(columns) + "/" + dtype,
                  [columns](benchmark::State& state) { embedding_backward<T>(state, columns); });
  }
}

}  // namespace
}  // namespace kvloom

int main(int count, char** arguments) {
  using kvloom::BFloat16;
  kvloom::add_benchmarks_of<float>("f32");
  kvloom::add_benchmarks_of<BFloat16>("bf16");
  kvloom::add_benchmark("adamw", kvloom::adamw);
  kvloom::add_benchmark("sum_of_squares", kvloom::sum_of_squares);
  kvloom::add_benchmark("cast/f32_f32", kvloom::cast<float, float>);
  kvloom::add_benchmark("cast/f32_bf16", kvloom::cast<float, BFloat16>);
  kvloom::add_benchmark("cast/bf16_f32", kvloom::cast<BFloat16, float>);
  kvloom::add_benchmark("cast/f64_bf16", kvloom::cast<double, BFloat16>);
  benchmark::Initialize(&count, arguments);
  if (benchmark::ReportUnrecognizedArguments(count, arguments)) return 2;
  benchmark::RunSpecifiedBenchmarks();
}
