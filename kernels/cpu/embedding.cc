#include "kernels/embedding.h"

#include <omp.h>

#include <algorithm>
#include <cstring>

#include "kernels/cpu/element.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/embedding.cc"
#include <hwy/foreach_target.h>

#include "kernels/cpu/vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvloom::cpu {
namespace HWY_NAMESPACE {
namespace {

constexpr std::int64_t kParallelElements = 1 << 15;

// The table's row of a token, or -1.
template <typename Op>
std::int64_t table_row(const Op& op, std::int64_t r) {
  const std::int64_t row = op.tokens[r] - op.first_token;
  return row >= 0 && row < op.table_rows ? row : -1;
}

template <typename T>
void forward_row(const EmbeddingForward& op, std::int64_t r) {
  const std::int64_t row = table_row(op, r);
  T* target = static_cast<T*>(op.output) + r * op.columns;
  if (row < 0) {
    std::fill(target, target + op.columns, T{});
  } else {
    std::memcpy(target, static_cast<const T*>(op.table) + row * op.columns,
                static_cast<std::size_t>(op.columns) * sizeof(T));
  }
}

// Adds the gradients of every `parts`-th row of the table, in the order of r.
template <typename T>
void backward_part(const EmbeddingBackward& op, std::int64_t part, std::int64_t parts) {
  for (std::int64_t r = 0; r < op.rows; ++r) {
    const std::int64_t row = table_row(op, r);
    if (row < 0 || row % parts != part) continue;
    const T* grad = static_cast<const T*>(op.grad_output) + r * op.columns;
    float* sum = op.grad_table + row * op.columns;
    for_vectors(0, op.columns,
                [&](auto place) HWY_ATTR { place.store(hn::Add(place.load(sum), place.load(grad)), sum); });
  }
}

void forward(const EmbeddingForward& op) {
  with_element_type(op.dtype, "embedding", [&]<typename T>(T*) {
#pragma omp parallel for schedule(static) if (op.rows * op.columns > kParallelElements)
    for (std::int64_t r = 0; r < op.rows; ++r) forward_row<T>(op, r);
  });
}

// Two tokens may share a row of the table, so threads own rows of the table, not tokens.
void backward(const EmbeddingBackward& op) {
  with_element_type(op.dtype, "embedding_backward", [&]<typename T>(T*) {
#pragma omp parallel if (op.rows * op.columns > kParallelElements)
    backward_part<T>(op, omp_get_thread_num(), omp_get_num_threads());
  });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvloom::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvloom::cpu {
namespace {
HWY_EXPORT(forward);
HWY_EXPORT(backward);
}  // namespace

void run(const EmbeddingForward& op) { HWY_DYNAMIC_DISPATCH(forward)(op); }
void run(const EmbeddingBackward& op) { HWY_DYNAMIC_DISPATCH(backward)(op); }

}  // namespace kvloom::cpu
#endif
