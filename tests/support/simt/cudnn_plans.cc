// In place of cuDNN: the same plans as plain loops in double precision.
#include "kernels/cuda/cudnn_plans.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "kernels/cuda/queue.h"
#include "kernels/dtype.h"
#include "tests/support/simt/capture.h"
#include "tests/support/simt/device_memory.h"

namespace kvloom::cuda {
namespace {

double at(const void* data, std::int64_t index) {
  return static_cast<double>(static_cast<float>(static_cast<const BFloat16*>(data)[index]));
}
void put(void* data, std::int64_t index, double value) {
  static_cast<BFloat16*>(data)[index] = BFloat16(static_cast<float>(value));
}

// One head of a sequence: where its rows begin, and the scores of its queries.
struct Head {
  Head(const CudnnAttentionShape& given, std::int64_t b_, std::int64_t h_)
      : shape(given), b(b_), h(h_), kv(h_ / (given.heads / given.kv_heads)) {}

  std::int64_t query(std::int64_t n) const {
    return b * shape.query_batch_stride + n * shape.query_stride + h * shape.head_dim;
  }
  std::int64_t output(std::int64_t n) const {
    return b * shape.output_batch_stride + n * shape.output_stride + h * shape.head_dim;
  }
  std::int64_t key(std::int64_t j) const {
    return b * shape.key_batch_stride + j * shape.key_stride + kv * shape.head_dim;
  }
  std::int64_t statistics(std::int64_t n) const { return (b * shape.heads + h) * shape.length + n; }
  std::int64_t first(std::int64_t n) const {
    return shape.window > 0 ? std::max<std::int64_t>(0, n - shape.window + 1) : 0;
  }
  double product(const void* x, std::int64_t x_at, const void* y, std::int64_t y_at) const {
    double sum = 0;
    for (std::int64_t d = 0; d < shape.head_dim; ++d) sum += at(x, x_at + d) * at(y, y_at + d);
    return sum;
  }

  const CudnnAttentionShape& shape;
  std::int64_t b, h, kv;
};

void run_forward(const CudnnAttentionShape& shape, const Head& head, const CudnnForwardPlaces& p) {
  for (std::int64_t n = 0; n < shape.length; ++n) {
    std::vector<double> scores;
    for (std::int64_t j = head.first(n); j <= n; ++j) {
      scores.push_back(shape.scale * head.product(p.query, head.query(n), p.key, head.key(j)));
    }
    const double largest = *std::max_element(scores.begin(), scores.end());
    double total = 0;
    for (const double score : scores) total += std::exp(score - largest);
    const double log_sum_exp = largest + std::log(total);
    static_cast<float*>(p.statistics)[head.statistics(n)] = static_cast<float>(log_sum_exp);
    for (std::int64_t d = 0; d < shape.head_dim; ++d) {
      double sum = 0;
      for (std::int64_t j = head.first(n); j <= n; ++j) {
        const double weight = std::exp(scores[static_cast<std::size_t>(j - head.first(n))] - log_sum_exp);
        sum += weight * at(p.value, head.key(j) + d);
      }
      put(p.output, head.output(n) + d, sum);
    }
  }
}

struct Sums {
  std::vector<double> query, key, value;  // [length, head_dim] of a head, and of a KV head
};

void run_backward(const CudnnAttentionShape& shape, const Head& head, const CudnnBackwardPlaces& p, Sums& sums) {
  const std::int64_t dim = shape.head_dim;
  sums.query.assign(static_cast<std::size_t>(shape.length * dim), 0);
  for (std::int64_t n = 0; n < shape.length; ++n) {
    const double delta = head.product(p.output, head.output(n), p.grad_output, head.output(n));
    const double log_sum_exp = static_cast<const float*>(p.statistics)[head.statistics(n)];
    for (std::int64_t j = head.first(n); j <= n; ++j) {
      const double score = shape.scale * head.product(p.query, head.query(n), p.key, head.key(j));
      const double weight = std::exp(score - log_sum_exp);
      const double slope =
          weight * (head.product(p.grad_output, head.output(n), p.value, head.key(j)) - delta) * shape.scale;
      for (std::int64_t d = 0; d < dim; ++d) {
        sums.query[static_cast<std::size_t>(n * dim + d)] += slope * at(p.key, head.key(j) + d);
        sums.key[static_cast<std::size_t>(j * dim + d)] += slope * at(p.query, head.query(n) + d);
        sums.value[static_cast<std::size_t>(j * dim + d)] += weight * at(p.grad_output, head.output(n) + d);
      }
    }
    for (std::int64_t d = 0; d < dim; ++d) {
      put(p.grad_query, head.b * shape.grad_query_batch_stride + n * shape.grad_query_stride + head.h * dim + d,
          sums.query[static_cast<std::size_t>(n * dim + d)]);
    }
  }
}

void put_key_sums(const CudnnAttentionShape& shape, const Head& head, const CudnnBackwardPlaces& p, const Sums& sums) {
  for (std::int64_t j = 0; j < shape.length; ++j) {
    for (std::int64_t d = 0; d < shape.head_dim; ++d) {
      const std::int64_t place =
          head.b * shape.grad_key_batch_stride + (j * shape.kv_heads + head.kv) * shape.head_dim + d;
      put(p.grad_key, place, sums.key[static_cast<std::size_t>(j * shape.head_dim + d)]);
      put(p.grad_value, place, sums.value[static_cast<std::size_t>(j * shape.head_dim + d)]);
    }
  }
}

void compute_forward(const CudnnAttentionShape& shape, const CudnnForwardPlaces& places) {
  const simt::DeviceMemoryAccess access;
  for (std::int64_t b = 0; b < shape.batch; ++b) {
    for (std::int64_t h = 0; h < shape.heads; ++h) run_forward(shape, Head(shape, b, h), places);
  }
}

void compute_backward(const CudnnAttentionShape& shape, const CudnnBackwardPlaces& places) {
  const simt::DeviceMemoryAccess access;
  const std::int64_t group = shape.heads / shape.kv_heads;
  for (std::int64_t b = 0; b < shape.batch; ++b) {
    Sums sums;
    for (std::int64_t h = 0; h < shape.heads; ++h) {
      const Head head(shape, b, h);
      if (h % group == 0) {
        sums.key.assign(static_cast<std::size_t>(shape.length * shape.head_dim), 0);
        sums.value = sums.key;
      }
      run_backward(shape, head, places, sums);
      if (h % group == group - 1) put_key_sums(shape, head, places, sums);
    }
  }
}

}  // namespace

struct CudnnPlans::Library {
  CUstream_st* stream;
};

CudnnPlans::CudnnPlans(Queue& queue) : library_(new Library{queue.stream()}) {}
CudnnPlans::~CudnnPlans() = default;
std::size_t CudnnPlans::version() const { return 0; }

std::optional<CudnnAttentionPlan<CudnnForwardPlaces>> CudnnPlans::forward(const CudnnAttentionShape& shape) {
  return CudnnAttentionPlan<CudnnForwardPlaces>{
      0, [shape, stream = library_->stream](const CudnnForwardPlaces& places, void*) {
        simt::give(stream, [shape, places] { compute_forward(shape, places); });
      }};
}

std::optional<CudnnAttentionPlan<CudnnBackwardPlaces>> CudnnPlans::backward(const CudnnAttentionShape& shape) {
  return CudnnAttentionPlan<CudnnBackwardPlaces>{
      0, [shape, stream = library_->stream](const CudnnBackwardPlaces& places, void*) {
        simt::give(stream, [shape, places] { compute_backward(shape, places); });
      }};
}

}  // namespace kvloom::cuda
