// The online softmax of a ragged attention. Scores count in powers of two: weights are 2^(score - reference).
// Included once for every instruction set.
#if defined(KVLOOM_RAGGED_SOFTMAX_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef KVLOOM_RAGGED_SOFTMAX_INL
#undef KVLOOM_RAGGED_SOFTMAX_INL
#else
#define KVLOOM_RAGGED_SOFTMAX_INL
#endif

#include <cmath>

#include "kernels/cpu/attention_tiles-inl.h"
#include "kernels/cpu/ragged_items.h"

HWY_BEFORE_NAMESPACE();
namespace kvloom::cpu {
namespace HWY_NAMESPACE {
namespace {

constexpr int kBlockVectors = static_cast<int>(kKeyBlock) / (HWY_MAX_BYTES >= 64 ? 16 : HWY_MAX_BYTES / 4);

// What a score of e^x is multiplied by to be one of 2^x.
constexpr float kLog2E = 1.44269504f;

// 2^r = 1 + r (c[0] + c[1] r + ...) for |r| <= 1/2, through Chebyshev's points.
constexpr float kPowerOfFloat[] = {0.69314719f,   0.24022651f,    0.055503571f,
                                   0.0096180826f, 0.00133908634f, 0.00015453163f};  // relative error below 1e-7
constexpr float kPowerOfBFloat16[] = {0.69313673f, 0.24022530f, 0.055838283f, 0.0096567103f};  // below 8e-6

// 2^x for x up to 127, 2^-126 below -126, NaN of NaN.
template <int kCount>
HWY_INLINE Vector power_of_two(Vector x, const float (&c)[kCount]) {
  // Max gives its second operand where that is NaN.
  const Vector clamped = hn::Max(fill(-126.0f), x);
  // Adding 1.5 * 2^23 rounds to an integer n in the low bits; with 127 more, they are the exponent field of 2^n.
  const Vector shifted = hn::Add(clamped, fill(12582912.0f + 127.0f));
  const Vector r = hn::Sub(clamped, hn::Sub(shifted, fill(12582912.0f + 127.0f)));
  const Vector power = hn::BitCast(Floats(), hn::ShiftLeft<23>(hn::BitCast(hn::RebindToUnsigned<Floats>(), shifted)));
  Vector p = fill(c[kCount - 1]);
  for (int i = kCount - 2; i >= 0; --i) p = hn::MulAdd(p, r, fill(c[i]));
  return hn::Mul(hn::MulAdd(p, r, fill(1.0f)), power);
}

// A weight, as precise as its products take it.
HWY_INLINE Vector weight_of(Vector score, float) { return power_of_two(score, kPowerOfFloat); }
HWY_INLINE Vector weight_of(Vector score, BFloat16) { return power_of_two(score, kPowerOfBFloat16); }

// Where a key's weight stands among those of its block, as the left operand of a product with values.
HWY_INLINE void store_weights(const Vector* weights, float* to) {
  for (int v = 0; v < kBlockVectors; ++v) hn::Store(weights[v], Floats(), to + v * lanes());
}

// Two weights of bf16 in a dword, the first in its lower half. Rounds to the nearest, halves up: weights are no less
// than zero, and what is not a number here stays so.
HWY_INLINE auto pair_weights(Vector first, Vector second) {
  const hn::RebindToUnsigned<Floats> words;
  const auto half = hn::Set(words, 0x8000);
  const auto low = hn::ShiftRight<16>(hn::Add(hn::BitCast(words, first), half));
  return hn::Or(low, hn::AndNot(hn::Set(words, 0xffff), hn::Add(hn::BitCast(words, second), half)));
}

// In pairs of keys that are kPairDistance apart (ragged_items.h).
HWY_INLINE void store_weights(const Vector* weights, BFloat16* to) {
  const hn::RebindToUnsigned<Floats> words;
  constexpr int kHalf = kBlockVectors * static_cast<int>(kPairDistance) / static_cast<int>(kKeyBlock);
  auto* dwords = reinterpret_cast<std::uint32_t*>(to);
  for (int v = 0; v < kBlockVectors; v += 2 * kHalf) {
    for (int i = 0; i < kHalf; ++i, dwords += lanes()) {
      hn::Store(pair_weights(weights[v + i], weights[v + kHalf + i]), words, dwords);
    }
  }
}

// How far scores may lie above the state's reference before it moves: weights up to 2^12 are as precise as those below
// 1, and most blocks then find no new reference and rescale nothing.
constexpr float kSlack = 12;

// What is left of sums when their reference moves on.
template <typename Left>
HWY_INLINE Vector kept_of(Vector old, Vector reference) {
  return weight_of(hn::Sub(old, reference), Left());
}

// The reference of a state after a block with scores of at most `most`, lane by lane; the state's sums are rescaled to
// it.
template <typename Left>
HWY_INLINE Vector move_reference(Vector most, float* state, std::int64_t state_size) {
  const Floats d;
  const Vector old = fill(state[0]);
  if (hn::AllFalse(d, hn::Gt(most, hn::Add(old, fill(kSlack))))) return old;
  const Vector reference = hn::Max(old, hn::MaxOfLanes(d, most));
  const float keep = hn::GetLane(kept_of<Left>(old, reference));
  state[0] = hn::GetLane(reference);
  multiply_row(state + kRowSums, state_size - kRowSums, keep);
  return reference;
}

// Takes a row's scores, times `factors`, in the online softmax: weights (=) [kKeyBlock], times `value_factors` where
// there are any. Only offsets in `span`, which is not empty, count.
template <typename Left>
HWY_INLINE void absorb_scores(const float* scores, const float* factors, const float* value_factors, Span span,
                              float* state, std::int64_t state_size, Left* weights) {
  const Floats d;
  Vector x[kBlockVectors];
  Vector most = fill(kMinusInfinity);
  const bool whole = span.begin == 0 && span.end == kKeyBlock;
  const auto counts = [&](int v) HWY_ATTR {
    const Vector offset = hn::Iota(d, static_cast<float>(v * lanes()));
    return hn::And(hn::Ge(offset, fill(static_cast<float>(span.begin))),
                   hn::Lt(offset, fill(static_cast<float>(span.end))));
  };
  for (int v = 0; v < kBlockVectors; ++v) {
    x[v] = hn::Mul(hn::Load(d, scores + v * lanes()), hn::Load(d, factors + v * lanes()));
    if (!whole) x[v] = hn::IfThenElse(counts(v), x[v], fill(kMinusInfinity));
    most = hn::Max(most, x[v]);
  }
  const Vector reference = move_reference<Left>(most, state, state_size);
  constexpr int kSumVectors = kBlockVectors * static_cast<int>(kSumLanes) / static_cast<int>(kKeyBlock);
  Vector sums[kSumVectors];
  for (int v = 0; v < kSumVectors; ++v) sums[v] = hn::Load(d, state + kRowSums + v * lanes());
  for (int v = 0; v < kBlockVectors; ++v) {
    x[v] = weight_of(hn::Sub(x[v], reference), Left());
    if (!whole) x[v] = hn::IfThenElseZero(counts(v), x[v]);
    sums[v % kSumVectors] = hn::Add(sums[v % kSumVectors], x[v]);
    if (value_factors != nullptr) x[v] = hn::Mul(x[v], hn::Load(d, value_factors + v * lanes()));
  }
  store_weights(x, weights);
  for (int v = 0; v < kSumVectors; ++v) hn::Store(sums[v], d, state + kRowSums + v * lanes());
}

HWY_INLINE void clear_state(float* state, std::int64_t size) {
  std::fill(state, state + size, 0.0f);
  state[0] = kMinusInfinity;
}

// `total` takes in what a later range of keys left.
HWY_INLINE void join_state(const float* part, std::int64_t size, float* total) {
  if (part[0] == kMinusInfinity) return;
  if (total[0] == kMinusInfinity) {
    std::copy(part, part + size, total);
    return;
  }
  const Floats d;
  const float most = std::max(total[0], part[0]);
  const float keep = std::exp2(total[0] - most);
  const float take = std::exp2(part[0] - most);
  total[0] = most;
  for (std::int64_t i = kRowSums; i < size; i += lanes()) {
    const Vector kept = hn::Mul(hn::LoadU(d, total + i), hn::Set(d, keep));
    hn::StoreU(hn::MulAdd(hn::LoadU(d, part + i), hn::Set(d, take), kept), d, total + i);
  }
}

// to (=) [count] = values, which lie in `order`, times `factor`.
template <typename T>
HWY_INLINE void write_values(const float* values, ColumnOrder order, std::int64_t count, float factor, T* to) {
  const Floats d;
  if (order == ColumnOrder::kPlain) {
    for_vectors(0, count, [&](auto place) HWY_ATTR { place.store(hn::Mul(place.load(values), fill(factor)), to); });
    return;
  }
  HWY_ALIGN float both[2 * kMostLanes];
  for (std::int64_t i = 0; i < count; i += 32) {
    for (std::int64_t v = 0; v < 16; v += lanes()) {
      hn::StoreInterleaved2(hn::Load(d, values + i + v), hn::Load(d, values + i + 16 + v), d, both);
      for (std::int64_t half = 0; half < 2 * lanes(); half += lanes()) {
        store_vector(hn::Mul(hn::Load(d, both + half), fill(factor)), to + i + 2 * v + half);
      }
    }
  }
}

HWY_INLINE void write_output(const RaggedAttention& op, const float* state, ColumnOrder order, std::int64_t row,
                             std::int64_t head) {
  const Floats d;
  Vector sums = hn::Load(d, state + kRowSums);
  for (std::int64_t i = lanes(); i < kSumLanes; i += lanes()) sums = hn::Add(sums, hn::Load(d, state + kRowSums + i));
  const float sum = hn::GetLane(hn::SumOfLanes(d, sums));
  const float factor = sum == 0 ? 0.0f : 1.0f / sum;
  const std::int64_t at = row * op.output_stride + head * op.head_dim;
  if (op.dtype == DType::kF32) {
    write_values(state + kRowValues, order, op.head_dim, factor, static_cast<float*>(op.output) + at);
  } else {
    write_values(state + kRowValues, order, op.head_dim, factor, static_cast<BFloat16*>(op.output) + at);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvloom::cpu
HWY_AFTER_NAMESPACE();

#endif
