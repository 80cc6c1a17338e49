// Vectors of f32 over buffers of f32 or bf16: loads, stores, loops with tails, sums, exponentials.
// Included once for every instruction set.
#if defined(KVLOOM_VECTORS_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef KVLOOM_VECTORS_INL
#undef KVLOOM_VECTORS_INL
#else
#define KVLOOM_VECTORS_INL
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>

#include "kernels/dtype.h"

HWY_BEFORE_NAMESPACE();
namespace kvloom::cpu {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;
constexpr std::int64_t kMostLanes = 16;
using Floats = hn::CappedTag<float, kMostLanes>;
using Vector = hn::Vec<Floats>;

HWY_INLINE std::int64_t lanes() { return static_cast<std::int64_t>(hn::Lanes(Floats())); }

HWY_INLINE Vector fill(float value) { return hn::Set(Floats(), value); }

HWY_INLINE Vector load_vector(const float* from) { return hn::LoadU(Floats(), from); }

HWY_INLINE Vector load_vector(const BFloat16* from) {
  const Floats d;
  const hn::Rebind<std::uint16_t, Floats> halves;
  const hn::RebindToUnsigned<Floats> words;
  const auto bits = hn::LoadU(halves, reinterpret_cast<const std::uint16_t*>(from));
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(words, bits)));
}

HWY_INLINE void store_vector(Vector value, float* to) { hn::StoreU(value, Floats(), to); }

// Rounds as BFloat16(float) does.
HWY_INLINE void store_vector(Vector value, BFloat16* to) {
  const hn::Rebind<std::uint16_t, Floats> halves;
  const hn::RebindToUnsigned<Floats> words;
  const auto bits = hn::BitCast(words, value);
  const auto last = hn::And(hn::ShiftRight<16>(bits), hn::Set(words, 1));
  const auto rounded = hn::Add(hn::Add(bits, hn::Set(words, 0x7fff)), last);
  const auto quiet = hn::Or(bits, hn::Set(words, 0x400000));
  const auto chosen = hn::IfThenElse(hn::RebindMask(words, hn::IsNaN(value)), quiet, rounded);
  hn::StoreU(hn::TruncateTo(halves, hn::ShiftRight<16>(chosen)), halves, reinterpret_cast<std::uint16_t*>(to));
}

// Where a loop stands: at a whole vector ...
struct Whole {
  std::int64_t begin;

  template <typename T>
  HWY_INLINE Vector load(const T* from, float = 0) const {
    return load_vector(from + begin);
  }
  template <typename T>
  HWY_INLINE void store(Vector value, T* to) const {
    store_vector(value, to + begin);
  }
};

// ... or at the last `count` elements, fewer than a vector: absent ones are read as `absent` and not written.
struct Tail {
  std::int64_t begin;
  std::int64_t count;

  template <typename T>
  HWY_INLINE Vector load(const T* from, float absent = 0) const {
    T whole[kMostLanes];
    std::fill_n(whole, kMostLanes, T(absent));
    std::copy_n(from + begin, count, whole);
    return load_vector(whole);
  }
  template <typename T>
  HWY_INLINE void store(Vector value, T* to) const {
    T whole[kMostLanes];
    store_vector(value, whole);
    std::copy_n(whole, count, to + begin);
  }
};

// Calls body(place) for each vector of [begin, end).
template <typename Body>
HWY_INLINE void for_vectors(std::int64_t begin, std::int64_t end, const Body& body) {
  std::int64_t i = begin;
  for (; i + lanes() <= end; i += lanes()) body(Whole{i});
  if (i < end) body(Tail{i, end - i});
}

// Folds [0, count) with state = step(state, place) in four states that start as `start`, so that steps need not wait
// for each other, then joins them.
template <typename Step, typename Join>
HWY_INLINE Vector fold(std::int64_t count, Vector start, const Step& step, const Join& join) {
  Vector a = start;
  Vector b = start;
  Vector c = start;
  Vector d = start;
  std::int64_t i = 0;
  for (; i + 4 * lanes() <= count; i += 4 * lanes()) {
    a = step(a, Whole{i});
    b = step(b, Whole{i + lanes()});
    c = step(c, Whole{i + 2 * lanes()});
    d = step(d, Whole{i + 3 * lanes()});
  }
  for (; i + lanes() <= count; i += lanes()) a = step(a, Whole{i});
  if (i < count) b = step(b, Tail{i, count - i});
  return join(join(a, b), join(c, d));
}

// The sum over [0, count) of what step(sum, place) adds to a lane's sum: in an order that `count` alone decides.
template <typename Step>
HWY_INLINE float sum_over(std::int64_t count, const Step& step) {
  const auto add = [](Vector a, Vector b) HWY_ATTR { return hn::Add(a, b); };
  return hn::GetLane(hn::SumOfLanes(Floats(), fold(count, hn::Zero(Floats()), step, add)));
}

// e^x with a relative error below 3e-7 for x >= -86.5; 0 below, e^88.7 above 88.7, NaN of NaN (Cephes' polynomial).
HWY_INLINE Vector exponential(Vector x) {
  // Min and Max give their second operand where either is NaN.
  const Vector clamped = hn::Max(fill(-86.5f), hn::Min(fill(88.7f), x));
  // Adding 1.5 * 2^23 rounds to an integer n in the low bits; with 126 more, they are the exponent field of 2^(n-1).
  const Vector shifted = hn::MulAdd(clamped, fill(1.44269504f), fill(12582912.0f + 126.0f));
  const Vector n = hn::Sub(shifted, fill(12582912.0f + 126.0f));
  const Vector power = hn::BitCast(Floats(), hn::ShiftLeft<23>(hn::BitCast(hn::RebindToUnsigned<Floats>(), shifted)));
  const Vector r = hn::MulAdd(n, fill(2.12194440e-4f), hn::NegMulAdd(n, fill(0.693359375f), clamped));
  Vector p = hn::MulAdd(fill(1.9875691500e-4f), r, fill(1.3981999507e-3f));
  p = hn::MulAdd(p, r, fill(8.3334519073e-3f));
  p = hn::MulAdd(p, r, fill(4.1665795894e-2f));
  p = hn::MulAdd(p, r, fill(1.6666665459e-1f));
  p = hn::MulAdd(p, r, fill(5.0000001201e-1f));
  const Vector value = hn::Add(hn::MulAdd(hn::Mul(p, r), r, r), fill(1.0f));
  // Twice half of it, since n reaches 128 and 2^128 is no float.
  return hn::IfThenZeroElse(hn::Lt(x, fill(-86.5f)), hn::Mul(hn::Add(value, value), power));
}

HWY_INLINE Vector sigmoid(Vector x) { return hn::Div(fill(1.0f), hn::Add(fill(1.0f), exponential(hn::Neg(x)))); }

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvloom::cpu
HWY_AFTER_NAMESPACE();

#endif
