// How fast kvloom's operations run on a GPU, beside what the same run measures as ceilings: a plain copy within device
// memory for those that move bytes, the best bf16 matrix product for those that multiply. One table; sizes are those of
// a 1.1B model (hidden 2048, ffn 5632, 32 heads over 4 KV heads of 64, vocab 32000) at 16K tokens, beyond any cache.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <functional>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "core/cuda_allocator.h"
#include "core/cuda_graph.h"
#include "core/cuda_stream.h"
#include "core/ops.h"
#include "kernels/random.h"

namespace kvloom {
namespace {

constexpr std::int64_t kTokens = 16384;
constexpr std::int64_t kContext = 2048;
constexpr std::int64_t kHidden = 2048;
constexpr std::int64_t kFfn = 5632;
constexpr std::int64_t kHeads = 32;
constexpr std::int64_t kKvHeads = 4;
constexpr std::int64_t kHeadDim = 64;
constexpr std::int64_t kVocab = 32000;

class Bench {
 public:
  explicit Bench(int device) : allocator_(device) {}

  CachingCudaAllocator& allocator() { return allocator_; }

  // Filled with a normal distribution's values: products of zeros draw less power, and so run faster, than any others.
  Tensor tensor(Shape shape, DType dtype) {
    Tensor result = Tensor::empty(allocator_, std::move(shape), dtype);
    fill(result);
    return result;
  }
  void fill(Tensor& tensor) {
    if (tensor.dtype() == DType::kI32) return tensor.fill_zero();
    Tensor flat = tensor.reshaped({tensor.count()});
    std::int64_t filled = std::min<std::int64_t>(flat.count(), 1 << 20);
    std::vector<float> values(static_cast<std::size_t>(filled));
    cpu::run(FillNormal{.output = values.data(), .count = filled, .seed = 1, .stream = 1, .stddev = 0.02f});
    const Tensor start = Tensor::of<float>(allocator_, {filled}, values);
    Tensor first = flat.rows(0, filled);
    ops::copy(start, first);
    for (; filled < flat.count(); filled *= 2) {
      Tensor next = flat.rows(filled, std::min(flat.count(), 2 * filled));
      ops::copy(flat.rows(0, next.count()), next);
    }
  }

  // Seconds of one run of `work`, which gives the device its work and goes on: the best of several batches.
  double seconds_of(const std::function<void()>& work) const {
    work();
    double best = 1e30;
    int count = 1;
    for (int batch = 0; batch < 6; ++batch) {
      allocator_.synchronize();
      const auto start = std::chrono::steady_clock::now();
      for (int i = 0; i < count; ++i) work();
      allocator_.synchronize();
      const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      best = std::min(best, seconds / count);
      count = std::clamp(static_cast<int>(0.02 / best), 1, 1000);
    }
    return best;
  }

  void moves(const std::string& name, double bytes, const std::function<void()>& work) {
    const double rate = bytes / seconds_of(work);
    if (copy_rate_ == 0) copy_rate_ = rate;
    fmt::print("{:<44} {:>9.1f} GB/s    {:>6.3f} of the copy\n", name, rate / 1e9, rate / copy_rate_);
  }
  void multiplies(const std::string& name, double flops, const std::function<void()>& work) {
    const double rate = flops / seconds_of(work);
    if (product_rate_ == 0) product_rate_ = rate;
    fmt::print("{:<44} {:>9.1f} TFLOP/s {:>6.3f} of the product\n", name, rate / 1e12, rate / product_rate_);
  }

 private:
  CachingCudaAllocator allocator_;
  double copy_rate_ = 0;
  double product_rate_ = 0;
};

// Work as a graph, as decoding gives it: what is timed is the device, not the host that starts kernel after kernel.
class Recorded {
 public:
  Recorded(Bench& bench, const std::function<void()>& work)
      : stream_(bench.allocator().stream()), arena_(bench.allocator()) {
    const CudaArena::Use use(arena_);
    work();  // takes the memory before the graph is recorded
    graph_.emplace(stream_, work);
  }

  void launch() const { graph_->launch(stream_); }

 private:
  const CudaStream& stream_;
  CudaArena arena_;
  std::optional<CudaGraph> graph_;
};

double bytes_of(const std::vector<Tensor>& tensors) {
  double bytes = 0;
  for (const Tensor& tensor : tensors) bytes += static_cast<double>(tensor.bytes());
  return bytes;
}

void bench_moves(Bench& bench) {
  Tensor a = bench.tensor({kTokens * 8, kHidden}, DType::kBF16);
  Tensor b = bench.tensor(a.shape(), DType::kBF16);
  bench.moves("copy", 2 * static_cast<double>(a.bytes()), [&] { ops::copy(a, b); });

  Tensor x = a.rows(0, kTokens);
  Tensor y = b.rows(0, kTokens);
  Tensor g = bench.tensor(x.shape(), DType::kBF16);
  Tensor gain = bench.tensor({kHidden}, DType::kF32);
  Tensor grad_gain = bench.tensor({kHidden}, DType::kF32);
  Tensor inverse_rms = bench.tensor({kTokens}, DType::kF32);
  bench.moves("rms_norm", bytes_of({x, y}), [&] { ops::rms_norm(x, gain, 1e-5f, y, inverse_rms); });
  bench.moves("rms_norm gradient, added to", bytes_of({x, y, g, g}),
              [&] { ops::rms_norm_grad(x, gain, inverse_rms, y, g, Output::kAccumulate, grad_gain); });
  bench.moves("add", bytes_of({x, y, g}), [&] { ops::add(x, y, g); });

  Tensor gate_up = bench.tensor({kTokens, 2 * kFfn}, DType::kBF16);
  Tensor activation = bench.tensor({kTokens, kFfn}, DType::kBF16);
  Tensor grad_gate_up = bench.tensor(gate_up.shape(), DType::kBF16);
  bench.moves("swiglu", bytes_of({gate_up, activation}), [&] { ops::swiglu(gate_up, activation); });
  bench.moves("swiglu gradient", bytes_of({gate_up, activation, grad_gate_up}),
              [&] { ops::swiglu_grad(gate_up, activation, grad_gate_up); });

  Tensor cosine = bench.tensor({kContext, kHeadDim / 2}, DType::kF32);
  bench.moves("rope", 2 * bytes_of({x}), [&] { ops::rope(x, cosine, cosine, {kContext}, Rotation::kForward); });

  Tensor tokens = bench.tensor({kTokens}, DType::kI32);
  std::vector<std::int32_t> ids(kTokens);
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int32_t>(i * 7919 % kVocab);
  tokens.assign<std::int32_t>(ids);
  Tensor table = bench.tensor({kVocab, kHidden}, DType::kBF16);
  Tensor grad_table = bench.tensor({kVocab, kHidden}, DType::kF32);
  bench.moves("embedding", bytes_of({x, y}), [&] { ops::embedding(tokens, table, 0, y); });
  bench.moves("embedding gradient", 5 * bytes_of({x}), [&] { ops::embedding_grad(tokens, x, 0, grad_table); });

  const std::int64_t count = 64 << 20;
  Tensor weight = bench.tensor({count}, DType::kF32);
  Tensor momentum = bench.tensor({count}, DType::kF32);
  Tensor variance = bench.tensor({count}, DType::kF32);
  variance.fill_zero();  // it is never negative
  Tensor gradient = bench.tensor({count}, DType::kF32);
  Tensor rounded = bench.tensor({count}, DType::kBF16);
  const AdamW adamw{.weight = weight.as<float>().data(),
                    .momentum = momentum.as<float>().data(),
                    .variance = variance.as<float>().data(),
                    .gradient = gradient.as<float>().data(),
                    .copy = rounded.as<BFloat16>().data(),
                    .count = count,
                    .step = 1,
                    .learning_rate = 1e-3f,
                    .beta1 = 0.9f,
                    .beta2 = 0.95f,
                    .epsilon = 1e-8f,
                    .weight_decay = 0.1f,
                    .gradient_scale = 1};
  bench.moves("adamw", 7 * bytes_of({weight}) + bytes_of({rounded}), [&] { ops::run(weight.device(), adamw); });
  double sum = 0;
  bench.moves("sum of squares (the host waits)", bytes_of({weight}), [&] {
    ops::run(weight.device(), SumOfSquares{weight.as<float>().data(), count, &sum});
  });

  const std::int64_t rows = 2048;
  Tensor logits = bench.tensor({rows, kVocab}, DType::kF32);
  Tensor grad_logits = bench.tensor({rows, kVocab}, DType::kBF16);
  Tensor each = bench.tensor({rows}, DType::kF32);
  const CrossEntropyStatistics statistics{logits.as<float>().data(),
                                          tokens.as<std::int32_t>().data(),
                                          each.as<float>().data(),
                                          each.as<float>().data(),
                                          each.as<float>().data(),
                                          rows,
                                          kVocab};
  bench.moves("cross entropy statistics", bytes_of({logits}), [&] { ops::run(logits.device(), statistics); });
  const CrossEntropy loss{.logits = logits.as<float>().data(),
                          .targets = tokens.as<std::int32_t>().data(),
                          .maximum = each.as<float>().data(),
                          .total = each.as<float>().data(),
                          .target_logit = each.as<float>().data(),
                          .loss = each.as<float>().data(),
                          .grad_logits = grad_logits.data(),
                          .rows = rows,
                          .vocab = kVocab,
                          .grad_dtype = DType::kBF16};
  bench.moves("cross entropy gradient", bytes_of({logits, grad_logits}), [&] { ops::run(logits.device(), loss); });
}

void bench_products(Bench& bench) {
  const auto flops = [](std::int64_t rows, std::int64_t columns, std::int64_t inner) {
    return 2.0 * static_cast<double>(rows) * static_cast<double>(columns) * static_cast<double>(inner);
  };
  for (const auto& [out, in] : {std::pair(std::int64_t{8192}, std::int64_t{8192}), std::pair(2 * kFfn, kHidden),
                                std::pair(kHidden, kFfn), std::pair(kHidden, kHidden), std::pair(kVocab, kHidden)}) {
    const std::int64_t rows = out == kVocab ? 2048 : kTokens;
    Tensor x = bench.tensor({rows, in}, DType::kBF16);
    Tensor w = bench.tensor({out, in}, DType::kBF16);
    Tensor y = bench.tensor({rows, out}, DType::kBF16);
    Tensor grad_w = bench.tensor({out, in}, DType::kF32);
    const std::string shape = fmt::format("[{}, {}] x [{}, {}]", rows, in, in, out);
    bench.multiplies("product " + shape, flops(rows, out, in), [&] { ops::linear(x, w, y); });
    bench.multiplies("its input's gradient", flops(rows, out, in), [&] { ops::linear_grad_input(y, w, x); });
    bench.multiplies("its weight's gradient, f32", flops(rows, out, in),
                     [&] { ops::linear_grad_weight(y, x, grad_w); });
  }
}

void bench_attention(Bench& bench) {
  for (const std::int64_t head_dim : {64, 128}) {
    const std::int64_t batch = kTokens / kContext;
    const std::int64_t heads = kHidden / head_dim;
    AttentionShape shape{.batch = batch,
                         .queries = kContext,
                         .keys = kContext,
                         .heads = heads,
                         .kv_heads = kKvHeads,
                         .head_dim = head_dim,
                         .scale = 1.0f / std::sqrt(static_cast<float>(head_dim)),
                         .dtype = DType::kBF16};
    Tensor query = bench.tensor({kTokens, kHidden}, DType::kBF16);
    Tensor output = bench.tensor(query.shape(), DType::kBF16);
    Tensor grad_query = bench.tensor(query.shape(), DType::kBF16);
    Tensor key = bench.tensor({kTokens, kKvHeads * head_dim}, DType::kBF16);
    Tensor grad_key = bench.tensor(key.shape(), DType::kF32);
    Tensor statistics = bench.tensor({kTokens, heads}, DType::kF32);
    const AttentionForward forward{shape,      query.data(),  key.data(),
                                   key.data(), output.data(), statistics.as<float>().data()};
    const AttentionBackward backward{shape,
                                     query.data(),
                                     key.data(),
                                     key.data(),
                                     output.data(),
                                     statistics.as<float>().data(),
                                     output.data(),
                                     grad_query.data(),
                                     0,
                                     grad_key.as<float>().data(),
                                     grad_key.as<float>().data()};
    // Two products over half of the square; backward has five.
    const double flops = 2.0 * static_cast<double>(batch * heads * head_dim) * static_cast<double>(kContext * kContext);
    bench.multiplies(fmt::format("attention, head_dim {}, causal 2048", head_dim), flops,
                     [&] { ops::run(query.device(), forward); });
    bench.multiplies("its gradient", 2.5 * flops, [&] { ops::run(query.device(), backward); });
  }
}

// Keys and values of `turns` caches of `sequences` each, one after another: too much for the L2 to keep any until its
// turn comes again.
struct Caches {
  Caches(Bench& bench, std::int64_t sequences_, std::int64_t head_dim_)
      : sequences(sequences_), head_dim(head_dim_), keys(bench.tensor(shape(), DType::kBF16)) {
    values = bench.tensor(keys.shape(), DType::kBF16);
  }

  std::int64_t width() const { return kKvHeads * head_dim; }
  std::int64_t rows() const { return sequences * kContext; }  // of a cache
  std::int64_t turns() const {
    constexpr std::int64_t kBeyondL2 = 256 << 20;
    const std::int64_t bytes = 2 * rows() * width() * static_cast<std::int64_t>(size_of(DType::kBF16));
    return (kBeyondL2 + bytes - 1) / bytes;
  }
  Shape shape() const { return {turns() * rows(), width()}; }

  std::int64_t sequences;
  std::int64_t head_dim;
  Tensor keys;
  Tensor values;
};

// One query of each sequence over a cache, for all of them in turn; in pages these lie in no order.
void bench_decode_attention(Bench& bench, const Caches& caches, std::int64_t page_size) {
  const std::int64_t head_dim = caches.head_dim;
  Tensor query = bench.tensor({caches.sequences, kHidden}, DType::kBF16);
  Tensor output = bench.tensor(query.shape(), DType::kBF16);
  AttentionForward decode{.shape = {.batch = caches.sequences,
                                    .queries = 1,
                                    .keys = kContext,
                                    .heads = kHidden / head_dim,
                                    .kv_heads = kKvHeads,
                                    .head_dim = head_dim,
                                    .first_position = kContext - 1,
                                    .scale = 1.0f / std::sqrt(static_cast<float>(head_dim)),
                                    .dtype = DType::kBF16},
                          .query = query.data(),
                          .key = nullptr,
                          .value = nullptr,
                          .output = output.data(),
                          .log_sum_exp = nullptr};
  Tensor table;
  if (page_size > 0) {
    std::vector<std::int32_t> pages(static_cast<std::size_t>(caches.rows() / page_size));
    std::iota(pages.begin(), pages.end(), 0);
    std::shuffle(pages.begin(), pages.end(), std::mt19937(1));
    table = bench.tensor({caches.sequences, kContext / page_size}, DType::kI32);
    table.assign<std::int32_t>(pages);
    decode.page_table = {table.as<std::int32_t>().data(), kContext / page_size, page_size};
  }
  const auto round = [&] {
    for (std::int64_t turn = 0; turn < caches.turns(); ++turn) {
      const Tensor keys = caches.keys.rows(turn * caches.rows(), (turn + 1) * caches.rows());
      const Tensor values = caches.values.rows(turn * caches.rows(), (turn + 1) * caches.rows());
      decode.key = keys.data();
      decode.value = values.data();
      ops::run(query.device(), decode);
    }
  };
  const Recorded recorded(bench, round);
  const std::string where = page_size > 0 ? fmt::format("pages of {}", page_size) : "no pages";
  bench.moves(fmt::format("decode, head_dim {}, batch {}, {}", head_dim, caches.sequences, where),
              bytes_of({caches.keys, caches.values}), [&] { recorded.launch(); });
}

void bench_decode_attention(Bench& bench) {
  for (const std::int64_t head_dim : {64, 128}) {
    for (const std::int64_t sequences : {1, 16, 64, 256}) {
      const Caches caches(bench, sequences, head_dim);
      for (const std::int64_t page_size : {0, 16, 64}) bench_decode_attention(bench, caches, page_size);
    }
  }
}

}  // namespace
}  // namespace kvloom

int main() {
  using namespace kvloom;
  const CudaPresence presence = cuda_presence();
  if (presence.devices == 0) {
    fmt::print("{}\n", presence.reason);
    return 0;
  }
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // whoever ends this early keeps the rows
  Bench bench(0);
  int status = 0;
  for (const auto part : {bench_moves, bench_products, bench_attention, bench_decode_attention}) {
    try {
      part(bench);
    } catch (const std::exception& error) {
      fmt::print(stderr, "cuda_bench: {}\n", error.what());
      status = 1;
    }
  }
  return status;
}
