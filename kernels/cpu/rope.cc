#include "kernels/rope.h"

#include <algorithm>

#include "kernels/cpu/element.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rope.cc"
#include <hwy/foreach_target.h>

#include "kernels/cpu/vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvloom::cpu {
namespace HWY_NAMESPACE {
namespace {

// `to` may be `from`.
template <typename T>
void rotate_head(const T* from, T* to, std::int64_t half, const float* cosines, const float* sines, float direction) {
  const Vector sign = fill(direction);
  for_vectors(0, half, [&](auto place) HWY_ATTR {
    const Vector a = place.load(from);
    const Vector b = place.load(from + half);
    const Vector cosine = place.load(cosines);
    const Vector sine = hn::Mul(sign, place.load(sines));
    place.store(hn::NegMulAdd(b, sine, hn::Mul(a, cosine)), to);
    place.store(hn::MulAdd(a, sine, hn::Mul(b, cosine)), to + half);
  });
}

// Of Rope and RopeSplit.
template <typename Op>
std::int64_t position_of(const Op& op, std::int64_t r) {
  const std::int64_t start = op.starts == nullptr ? 0 : op.starts[r / op.row_period];
  return op.first_position + start + r % op.row_period;
}

template <typename T>
void rotate_row(const Rope& op, std::int64_t r) {
  const std::int64_t half = op.head_dim / 2;
  const std::int64_t position = position_of(op, r);
  if (position < 0) return;
  const float* cosines = op.cosine + position * half;
  const float* sines = op.sine + position * half;
  const float direction = op.rotation == Rotation::kForward ? 1.0f : -1.0f;
  for (std::int64_t h = 0; h < op.heads; ++h) {
    T* head = static_cast<T*>(op.data) + r * op.stride + h * op.head_dim;
    rotate_head(head, head, half, cosines, sines, direction);
  }
}

void rotate(const Rope& op) {
  with_element_type(op.dtype, "rope", [&]<typename T>(T*) {
#pragma omp parallel for schedule(static) if (op.rows * op.heads * op.head_dim > (1 << 14))
    for (std::int64_t r = 0; r < op.rows; ++r) rotate_row<T>(op, r);
  });
}

template <typename T>
T* output_row(const RopeSplit& op, const RopePart& part, std::int64_t r, std::int64_t position) {
  T* output = static_cast<T*>(part.output);
  if (part.place == RowPlace::kDense) return output + r * part.output_stride;
  const std::int64_t sequence = r / op.row_period;
  if (part.place == RowPlace::kAtPosition) {
    return output + sequence * part.sequence_stride + position * part.output_stride;
  }
  const PageTable& table = op.page_table;
  const std::int64_t page = table.pages[sequence * table.pages_per_sequence + position / table.page_size];
  return output + (page * table.page_size + position % table.page_size) * part.output_stride;
}

template <typename T>
void split_row(const RopeSplit& op, const RopePart& part, std::int64_t r) {
  const std::int64_t half = op.head_dim / 2;
  const std::int64_t position = position_of(op, r);
  if (position < 0) return;
  const T* in = static_cast<const T*>(part.input) + r * part.input_stride;
  T* out = output_row<T>(op, part, r, position);
  if (part.turn == HeadTurn::kAsIs) {
    if (in != out) std::copy_n(in, part.heads * op.head_dim, out);
    return;
  }
  for (std::int64_t h = 0; h < part.heads; ++h) {
    rotate_head(in + h * op.head_dim, out + h * op.head_dim, half, op.cosine + position * half,
                op.sine + position * half, 1.0f);
  }
}

void split(const RopeSplit& op) {
  std::int64_t heads = 0;
  for (const RopePart& part : op.parts) heads += part.heads;
  with_element_type(op.dtype, "rope", [&]<typename T>(T*) {
#pragma omp parallel for schedule(static) if (op.rows * heads * op.head_dim > (1 << 14))
    for (std::int64_t r = 0; r < op.rows; ++r) {
      for (const RopePart& part : op.parts) split_row<T>(op, part, r);
    }
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
HWY_EXPORT(split);
}  // namespace

void run(const Rope& op) { HWY_DYNAMIC_DISPATCH(rotate)(op); }
void run(const RopeSplit& op) {
  const std::int64_t positions = op.starts == nullptr ? op.first_position + op.row_period : 0;
  for (const RopePart& part : op.parts) {
    if (part.heads > 0 && part.place == RowPlace::kAtPage) check_pages(op.page_table, positions);
  }
  HWY_DYNAMIC_DISPATCH(split)(op);
}

}  // namespace kvloom::cpu
#endif
