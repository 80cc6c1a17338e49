#include "kernels/rope.h"

#include "kernels/cpu/vector_math.h"

namespace kvloom::cpu {
namespace {

template <typename T>
void rotate(const Rope& op) {
  const std::int64_t half = op.head_dim / 2;
  const float sign = op.rotation == Rotation::kForward ? 1.0f : -1.0f;
#pragma omp parallel for schedule(static) if (op.rows * op.heads * op.head_dim > (1 << 14))
  for (std::int64_t r = 0; r < op.rows; ++r) {
    const std::int64_t position = op.first_position + r % op.row_period;
    const float* cosine = op.cosine + position * half;
    const float* sine = op.sine + position * half;
    for (std::int64_t h = 0; h < op.heads; ++h) {
      T* low = static_cast<T*>(op.data) + r * op.stride + h * op.head_dim;
      T* high = low + half;
#pragma omp simd
      for (std::int64_t d = 0; d < half; ++d) {
        const float a = load(low, d);
        const float b = load(high, d);
        const float s = sign * sine[d];
        store(low, d, a * cosine[d] - b * s);
        store(high, d, b * cosine[d] + a * s);
      }
    }
  }
}

}  // namespace

void run(const Rope& op) {
  with_element_type(op.dtype, "rope", [&]<typename T>(T*) { rotate<T>(op); });
}

}  // namespace kvloom::cpu
