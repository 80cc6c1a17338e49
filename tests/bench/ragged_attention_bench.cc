// Attention of an inference step on the CPU. Decode: keys and values read a second, against the rate at which the
// threads read memory. Chunks of a prompt: floating-point operations of scores and values a second. Arguments: heads,
// KV heads, head_dim, repetitions. Prints the best of the repetitions.
#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/cpu/ragged_attention.h"
#include "tests/bench/memory_rate.h"

namespace kvloom {
namespace {

struct Settings {
  std::int64_t heads = 32;
  std::int64_t kv_heads = 4;
  std::int64_t head_dim = 64;
  int repetitions = 20;
};

struct Way {
  std::string name;
  DType dtype;
  KvFormat format;
  const cpu::Bf16Products* products;
};

std::vector<Way> ways() {
  std::vector<Way> all = {{"f32", DType::kF32, KvFormat::kF32, nullptr}};
  for (const auto& products : cpu::bf16_products()) {
    all.push_back({std::string("bf16, ") + products.name, DType::kBF16, KvFormat::kBF16, &products});
  }
  all.push_back({"bf16 in f32", DType::kBF16, KvFormat::kBF16, nullptr});
  for (const auto& products : cpu::bf16_products()) {
    all.push_back({std::string("bf16 over int8, ") + products.name, DType::kBF16, KvFormat::kInt8, &products});
  }
  return all;
}

// Sequences of equal length, their pages anywhere.
class Call {
 public:
  struct Size {
    std::int64_t sequences;
    std::int64_t queries;
    std::int64_t keys;
  };

  Call(const Settings& settings, const Way& way, const Size& size)
      : settings_(settings),
        way_(way),
        size_(size),
        pages_(static_cast<std::size_t>(size.sequences * size.keys / kPage)),
        key_(bytes()),
        value_(bytes()),
        scales_(static_cast<std::size_t>(size.sequences * size.keys * settings.kv_heads), 0.01f),
        query_(static_cast<std::size_t>(size.sequences * size.queries * settings.heads * settings.head_dim) * 4, '\0'),
        output_(query_.size()) {
    std::iota(pages_.begin(), pages_.end(), 0);
    std::shuffle(pages_.begin(), pages_.end(), std::minstd_rand(1));
    for (std::int64_t s = 0; s < size.sequences; ++s) {
      sequences_.push_back(
          {s * size.queries, size.queries, size.keys - size.queries, pages_.data() + s * size.keys / kPage});
    }
  }

  std::size_t bytes() const {
    return static_cast<std::size_t>(size_.sequences * size_.keys *
                                    kv_row_bytes(way_.format, settings_.kv_heads, settings_.head_dim));
  }
  double flops() const {
    const double seen = static_cast<double>(size_.queries * (size_.keys - size_.queries)) +
                        static_cast<double>(size_.queries * (size_.queries + 1)) / 2;
    return 4 * seen * static_cast<double>(size_.sequences * settings_.heads * settings_.head_dim);
  }

  double best_seconds() {
    const bool int8 = way_.format == KvFormat::kInt8;
    const RaggedAttention op{.sequences = sequences_,
                             .query = query_.data(),
                             .key = {key_.data(), int8 ? scales_.data() : nullptr, way_.format},
                             .value = {value_.data(), int8 ? scales_.data() : nullptr, way_.format},
                             .output = output_.data(),
                             .heads = settings_.heads,
                             .kv_heads = settings_.kv_heads,
                             .head_dim = settings_.head_dim,
                             .page_size = kPage,
                             .scale = 1.0f / std::sqrt(static_cast<float>(settings_.head_dim)),
                             .dtype = way_.dtype};
    double best = 1e9;
    for (int n = 0; n < settings_.repetitions; ++n) {
      best = std::min(best, seconds_of([&] { cpu::attend_ragged(op, way_.products); }));
    }
    return best;
  }

 private:
  static constexpr std::int64_t kPage = 16;
  const Settings& settings_;
  const Way& way_;
  Size size_;
  std::vector<std::int32_t> pages_;
  Pages key_;
  Pages value_;
  std::vector<float> scales_;
  std::vector<char> query_;
  std::vector<char> output_;
  std::vector<SequenceRows> sequences_;
};

void measure(const Settings& settings, const Way& way, double memory) {
  fmt::print("{}\n  decode: sequences, keys | us       | GB/s of K and V | of memory's\n", way.name);
  for (const Call::Size& size :
       {Call::Size{1, 1, 512}, {1, 1, 4096}, {1, 1, 65536}, {8, 1, 1024}, {32, 1, 1024}, {64, 1, 4096}}) {
    Call call(settings, way, size);
    const double seconds = call.best_seconds();
    const double rate = 2 * static_cast<double>(call.bytes()) / seconds;
    fmt::print("  {:17}, {:5} | {:8.1f} | {:15.1f} | {:11.2f}\n", size.sequences, size.keys, seconds * 1e6, rate / 1e9,
               rate / memory);
  }
  fmt::print("  chunk: queries, keys | us       | GFLOP/s\n");
  for (const Call::Size& size : {Call::Size{1, 64, 512}, {1, 512, 512}, {1, 512, 2048}, {1, 1024, 1024}}) {
    Call call(settings, way, size);
    const double seconds = call.best_seconds();
    fmt::print("  {:14}, {:5} | {:8.1f} | {:7.0f}\n", size.queries, size.keys, seconds * 1e6,
               call.flops() / seconds / 1e9);
  }
}

}  // namespace
}  // namespace kvloom

int main(int count, char** arguments) {
  kvloom::Settings settings;
  if (count > 1) settings.heads = std::atoll(arguments[1]);
  if (count > 2) settings.kv_heads = std::atoll(arguments[2]);
  if (count > 3) settings.head_dim = std::atoll(arguments[3]);
  if (count > 4) settings.repetitions = std::atoi(arguments[4]);
  const double memory = kvloom::memory_rate(settings.repetitions);
  fmt::print("{} threads, {} heads on {} KV heads of {}, best of {}; reading memory: {:.1f} GB/s\n",
             omp_get_max_threads(), settings.heads, settings.kv_heads, settings.head_dim, settings.repetitions,
             memory / 1e9);
  for (const kvloom::Way& way : kvloom::ways()) kvloom::measure(settings, way, memory);
}
