#include "kernels/embedding.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/vector_math.h"

namespace kvloom::cpu {
namespace {

// Columns a thread owns at a time: two tokens may share a table row, so rows cannot be shared out.
constexpr std::int64_t kColumnBlock = 128;

// The table's row of a token, or -1.
template <typename Op>
std::int64_t table_row(const Op& op, std::int64_t r) {
  const std::int64_t row = op.tokens[r] - op.first_token;
  return row >= 0 && row < op.table_rows ? row : -1;
}

template <typename T>
void forward(const EmbeddingForward& op) {
  const T* table = static_cast<const T*>(op.table);
  T* output = static_cast<T*>(op.output);
#pragma omp parallel for schedule(static) if (op.rows * op.columns > (1 << 15))
  for (std::int64_t r = 0; r < op.rows; ++r) {
    const std::int64_t row = table_row(op, r);
    T* target = output + r * op.columns;
    if (row < 0) {
      std::fill(target, target + op.columns, T{});
    } else {
      std::memcpy(target, table + row * op.columns, static_cast<std::size_t>(op.columns) * sizeof(T));
    }
  }
}

template <typename T>
void backward(const EmbeddingBackward& op) {
  const std::int64_t blocks = (op.columns + kColumnBlock - 1) / kColumnBlock;
#pragma omp parallel for schedule(static) if (op.rows * op.columns > (1 << 15))
  for (std::int64_t block = 0; block < blocks; ++block) {
    const std::int64_t begin = block * kColumnBlock;
    const std::int64_t end = std::min(op.columns, begin + kColumnBlock);
    for (std::int64_t r = 0; r < op.rows; ++r) {
      const std::int64_t row = table_row(op, r);
      if (row < 0) continue;
      const T* grad = static_cast<const T*>(op.grad_output) + r * op.columns;
      float* out = op.grad_table + row * op.columns;
#pragma omp simd
      for (std::int64_t c = begin; c < end; ++c) out[c] += load(grad, c);
    }
  }
}

}  // namespace

void run(const EmbeddingForward& op) {
  with_element_type(op.dtype, "embedding", [&]<typename T>(T*) { forward<T>(op); });
}

void run(const EmbeddingBackward& op) {
  with_element_type(op.dtype, "embedding_backward", [&]<typename T>(T*) { backward<T>(op); });
}

}  // namespace kvloom::cpu
