#include "kernels/rope.h"

#include "kernels/cpu/element.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rope.cc"
#include <hwy/foreach_target.h>

#include "kernels/cpu/vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvloom::cpu {
namespace HWY_NAMESPACE {
namespace {

template <typename T>
void rotate_row(const Rope& op, std::int64_t r) {
  const std::int64_t half = op.head_dim / 2;
  const std::int64_t position = op.first_position + r % op.row_period;
  const float* cosines = op.cosine + position * half;
  const float* sines = op.sine + position * half;
  const Vector sign = fill(op.rotation == Rotation::kForward ? 1.0f : -1.0f);
  for (std::int64_t h = 0; h < op.heads; ++h) {
    T* low = static_cast<T*>(op.data) + r * op.stride + h * op.head_dim;
    T* high = low + half;
    for_vectors(0, half, [&](auto place) HWY_ATTR {
      const Vector a = place.load(low);
      const Vector b = place.load(high);
      const Vector cosine = place.load(cosines);
      const Vector sine = hn::Mul(sign, place.load(sines));
      place.store(hn::NegMulAdd(b, sine, hn::Mul(a, cosine)), low);
      place.store(hn::MulAdd(a, sine, hn::Mul(b, cosine)), high);
    });
  }
}

void rotate(const Rope& op) {
  with_element_type(op.dtype, "rope", [&]<typename T>(T*) {
#pragma omp parallel for schedule(static) if (op.rows * op.heads * op.head_dim > (1 << 14))
    for (std::int64_t r = 0; r < op.rows; ++r) rotate_row<T>(op, r);
  });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvloom::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvloom::cpu {
namespace {
HWY_EXPORT(rotate);
}  // namespace

void run(const Rope& op) { HWY_DYNAMIC_DISPATCH(rotate)(op); }

}  // namespace kvloom::cpu
#endif
