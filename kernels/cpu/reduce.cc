#include "kernels/reduce.h"

#include <algorithm>
#include <bit>
#include <vector>

#include "kernels/cpu/element.h"
#include "kernels/cpu/pieces.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/reduce.cc"
#include <hwy/foreach_target.h>

#include "kernels/cpu/vectors-inl.h"

#ifndef KVLOOM_REDUCE_MAGNITUDES
#define KVLOOM_REDUCE_MAGNITUDES
namespace kvloom::cpu {
namespace {

// Bits of absolute values. As integers they are ordered as the values are, with NaN above infinity.
struct Magnitudes {
  std::uint32_t change;
  std::uint32_t size;
};

}  // namespace
}  // namespace kvloom::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace kvloom::cpu {
namespace HWY_NAMESPACE {
namespace {

using Words = hn::RebindToUnsigned<Floats>;

HWY_INLINE hn::Vec<Words> larger_magnitude(hn::Vec<Words> most, Vector value) {
  return hn::Max(most, hn::BitCast(Words(), hn::Abs(value)));
}

template <typename T>
Magnitudes largest_of(const MaxChange& op, std::int64_t begin, std::int64_t end) {
  auto change = hn::Zero(Words());
  auto size = hn::Zero(Words());
  for_vectors(begin, end, [&](auto place) HWY_ATTR {
    const Vector a = place.load(static_cast<const T*>(op.a));
    change = larger_magnitude(change, hn::Sub(a, place.load(static_cast<const T*>(op.b))));
    size = larger_magnitude(size, a);
  });
  return {hn::GetLane(hn::MaxOfLanes(Words(), change)), hn::GetLane(hn::MaxOfLanes(Words(), size))};
}

Magnitudes max_change(const MaxChange& op, std::int64_t begin, std::int64_t end) {
  return op.dtype == DType::kF32 ? largest_of<float>(op, begin, end) : largest_of<BFloat16>(op, begin, end);
}

double sum_of_squares(const float* data, std::int64_t count) {
  const hn::CappedTag<double, kMostLanes / 2> d;
  const hn::Rebind<float, decltype(d)> halves;
  const auto step = static_cast<std::int64_t>(hn::Lanes(d));
  auto even = hn::Zero(d);
  auto odd = hn::Zero(d);
  std::int64_t i = 0;
  for (; i + 2 * step <= count; i += 2 * step) {
    const auto x = hn::PromoteTo(d, hn::LoadU(halves, data + i));
    const auto y = hn::PromoteTo(d, hn::LoadU(halves, data + i + step));
    even = hn::MulAdd(x, x, even);
    odd = hn::MulAdd(y, y, odd);
  }
  double sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(even, odd)));
  for (; i < count; ++i) sum += static_cast<double>(data[i]) * static_cast<double>(data[i]);
  return sum;
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvloom::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvloom::cpu {
namespace {
HWY_EXPORT(sum_of_squares);
HWY_EXPORT(max_change);
}  // namespace

void run(const SumOfSquares& op) {
  std::vector<double> sums(static_cast<std::size_t>(pieces_of(op.count)), 0.0);
  const auto sum_of = HWY_DYNAMIC_DISPATCH(sum_of_squares);
  for_pieces(op.count, [&](std::int64_t begin, std::int64_t end) {
    sums[static_cast<std::size_t>(begin / kPiece)] = sum_of(op.data + begin, end - begin);
  });
  *op.result = 0;
  for (const double sum : sums) *op.result += sum;
}

void run(const MaxChange& op) {
  with_element_type(op.dtype, "max_change", [](auto*) {});
  std::uint32_t change = 0;
  std::uint32_t size = 0;
  const auto largest_of = HWY_DYNAMIC_DISPATCH(max_change);
  const std::int64_t pieces = pieces_of(op.count);
#pragma omp parallel for schedule(static) reduction(max : change, size) if (pieces > 4)
  for (std::int64_t n = 0; n < pieces; ++n) {
    const Magnitudes most = largest_of(op, n * kPiece, std::min(op.count, (n + 1) * kPiece));
    change = std::max(change, most.change);
    size = std::max(size, most.size);
  }
  *op.change_result = std::bit_cast<float>(change);
  *op.size_result = std::bit_cast<float>(size);
}

}  // namespace kvloom::cpu
#endif
