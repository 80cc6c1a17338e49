// Attention on the CPU, keys one after another and in pages in no order. Decode: `best_rate`, bytes of keys and values
// read a second. Prefill: products of scores and values a second, as floating-point operations.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/attention.h"

namespace kvloom {
namespace {

constexpr std::int64_t kHeads = 32;
constexpr std::int64_t kKvHeads = 4;
constexpr std::int64_t kHeadDim = 64;
constexpr std::int64_t kRow = kKvHeads * kHeadDim;

template <typename T>
std::vector<T> noise(std::int64_t count) {
  std::minstd_rand engine(1);
  std::vector<T> values(static_cast<std::size_t>(count));
  for (T& value : values) value = T(static_cast<float>(engine() % 2048) / 512.0f - 2.0f);
  return values;
}

struct Size {
  std::int64_t batch;
  std::int64_t queries;
  std::int64_t keys;
  std::int64_t page_size;  // 0: keys one after another
};

// Everything that an operation needs, as large as `size` says.
template <typename T>
struct Operands {
  explicit Operands(const Size& given)
      : size(given),
        query(noise<T>(size.batch * size.queries * kHeads * kHeadDim)),
        output(query),
        key(noise<T>(size.batch * size.keys * kRow)),
        value(key),
        table(static_cast<std::size_t>(size.page_size == 0 ? 0 : size.batch * size.keys / size.page_size)) {
    std::iota(table.begin(), table.end(), 0);
    std::shuffle(table.begin(), table.end(), std::minstd_rand(2));
  }

  AttentionForward op() {
    AttentionForward forward{.shape = {.batch = size.batch,
                                       .queries = size.queries,
                                       .keys = size.keys,
                                       .heads = kHeads,
                                       .kv_heads = kKvHeads,
                                       .head_dim = kHeadDim,
                                       .first_position = size.keys - size.queries,
                                       .scale = 1.0f / std::sqrt(static_cast<float>(kHeadDim)),
                                       .dtype = DTypeOf<T>::value},
                             .query = query.data(),
                             .key = key.data(),
                             .value = value.data(),
                             .output = output.data(),
                             .log_sum_exp = nullptr};
    if (size.page_size > 0) forward.page_table = {table.data(), size.keys / size.page_size, size.page_size};
    return forward;
  }

  Size size;
  std::vector<T> query, output, key, value;
  std::vector<std::int32_t> table;
};

// `amount` of something an operation, as a rate. The best of many counts.
void measure(benchmark::State& state, double amount, const std::function<void()>& operation) {
  double best = 1e9;
  for (auto _ : state) {
    const auto start = std::chrono::steady_clock::now();
    operation();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    state.SetIterationTime(seconds);
    best = std::min(best, seconds);
  }
  state.counters["best_rate"] = benchmark::Counter(amount / best);
}

template <typename T>
void decode(benchmark::State& state, const Size& size) {
  Operands<T> operands(size);
  const AttentionForward op = operands.op();
  measure(state, static_cast<double>(2 * operands.key.size() * sizeof(T)), [&] { cpu::run(op); });
}

template <typename T>
void prefill(benchmark::State& state, const Size& size) {
  Operands<T> operands(size);
  const AttentionForward op = operands.op();
  const std::int64_t seen = size.queries * (size.keys - size.queries) + size.queries * (size.queries + 1) / 2;
  measure(state, static_cast<double>(size.batch * kHeads * seen * kHeadDim * 4), [&] { cpu::run(op); });
}

using Benchmark = std::function<void(benchmark::State&)>;

void add(const std::string& name, const Benchmark& run) {
  benchmark::RegisterBenchmark(name.c_str(), run)->UseManualTime()->Unit(benchmark::kMicrosecond);
}

template <typename T>
void add_benchmarks_of(const std::string& dtype) {
  for (const std::int64_t page_size : {0, 16, 64, 256}) {
    const std::string layout = page_size == 0 ? "dense" : "pages_" + std::to_string(page_size);
    for (const std::int64_t batch : {1, 8}) {
      add("decode_" + std::to_string(batch) + "/" + dtype + "/" + layout, [=](benchmark::State& state) {
        decode<T>(state, {batch, 1, 2048, page_size});
      });
    }
    add("prefill/" + dtype + "/" + layout, [=](benchmark::State& state) {
      prefill<T>(state, {1, 512, 512, page_size});
    });
    add("chunk_of_prefill/" + dtype + "/" + layout, [=](benchmark::State& state) {
      prefill<T>(state, {1, 128, 2048, page_size});
    });
  }
}

}  // namespace
}  // namespace kvloom

int main(int count, char** arguments) {
  kvloom::add_benchmarks_of<float>("f32");
  kvloom::add_benchmarks_of<kvloom::BFloat16>("bf16");
  benchmark::Initialize(&count, arguments);
  if (benchmark::ReportUnrecognizedArguments(count, arguments)) return 2;
  benchmark::RunSpecifiedBenchmarks();
}
