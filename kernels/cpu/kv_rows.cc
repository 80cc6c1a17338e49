// New keys and values into a pool.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/element.h"
#include "kernels/ragged_attention.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/kv_rows.cc"
#include <hwy/foreach_target.h>

#include "kernels/cpu/vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvloom::cpu {
namespace HWY_NAMESPACE {
namespace {

// The largest of absolute values, lane by lane.
HWY_INLINE Vector most(Vector a, Vector b) { return hn::Max(a, b); }

HWY_INLINE float largest_lane(Vector value) { return hn::GetLane(hn::MaxOfLanes(Floats(), value)); }

template <typename In>
HWY_INLINE float largest_absolute(const In* from, std::int64_t count) {
  const auto step = [&](Vector state, auto place) HWY_ATTR { return most(state, hn::Abs(place.load(from))); };
  return largest_lane(fold(count, fill(0.0f), step, [](Vector a, Vector b) HWY_ATTR { return most(a, b); }));
}

// Widens what fold's place says of int8.
struct Levels {
  const std::int8_t* data;
  HWY_INLINE Vector load(const Whole& place) const {
    const hn::RebindToSigned<Floats> words;
    const hn::Rebind<std::int8_t, Floats> bytes;
    return hn::ConvertTo(Floats(), hn::PromoteTo(words, hn::LoadU(bytes, data + place.begin)));
  }
  HWY_INLINE Vector load(const Tail& place) const {
    std::int8_t whole[kMostLanes] = {};
    std::copy_n(data + place.begin, place.count, whole);
    return Levels{whole}.load(Whole{0});
  }
};

HWY_INLINE void store_levels(Vector value, const Whole& place, std::int8_t* to) {
  const hn::Rebind<std::int8_t, Floats> bytes;
  hn::StoreU(hn::DemoteTo(bytes, hn::NearestInt(value)), bytes, to + place.begin);
}
HWY_INLINE void store_levels(Vector value, const Tail& place, std::int8_t* to) {
  std::int8_t whole[kMostLanes];
  store_levels(value, Whole{0}, whole);
  std::copy_n(whole, place.count, to + place.begin);
}

class RowWriter {
 public:
  RowWriter(const StoreKvRows& op, std::int64_t row)
      : op_(op),
        in_(row * (op.input_stride == 0 ? op.kv_heads * op.head_dim : op.input_stride)),
        out_(op.places[row] * op.kv_heads * op.head_dim),
        movement_(op.movement == nullptr ? nullptr : op.movement + row),
        first_scale_(op.places[row] * op.kv_heads) {}

  template <typename In>
  void run() const {
    const In* in = static_cast<const In*>(op_.input) + in_;
    switch (op_.pool.format) {
      case KvFormat::kF32:
        return write(in, static_cast<float*>(op_.pool.rows) + out_);
      case KvFormat::kBF16:
        return write(in, static_cast<BFloat16*>(op_.pool.rows) + out_);
      case KvFormat::kInt8:
        return write_levels(in, static_cast<std::int8_t*>(op_.pool.rows) + out_);
    }
  }

 private:
  template <typename In, typename Out>
  void write(const In* in, Out* out) const {
    const std::int64_t count = op_.kv_heads * op_.head_dim;
    if (movement_ == nullptr) {
      if constexpr (std::is_same_v<In, Out>) {
        std::memcpy(out, in, static_cast<std::size_t>(count) * sizeof(In));
      } else {
        for_vectors(0, count, [&](auto place) HWY_ATTR { place.store(place.load(in), out); });
      }
      return;
    }
    Vector difference = fill(0.0f);
    Vector value = fill(0.0f);
    for_vectors(0, count, [&](auto place) HWY_ATTR {
      const Vector before = place.load(out);
      place.store(place.load(in), out);
      const Vector now = place.load(out);
      difference = most(difference, hn::Abs(hn::Sub(now, before)));
      value = most(value, hn::Abs(now));
    });
    *movement_ = {largest_lane(difference), largest_lane(value)};
  }

  template <typename In>
  void write_levels(const In* in, std::int8_t* out) const {
    Vector difference = fill(0.0f);
    Vector value = fill(0.0f);
    for (std::int64_t head = 0; head < op_.kv_heads; ++head, in += op_.head_dim, out += op_.head_dim) {
      float& scale = op_.pool.scales[first_scale_ + head];
      const Vector old_scale = fill(scale);
      scale = largest_absolute(in, op_.head_dim) / 127.0f;
      const Vector new_scale = fill(scale);
      const Vector divisor = fill(scale == 0 ? 1.0f : scale);
      for_vectors(0, op_.head_dim, [&](auto place) HWY_ATTR {
        Vector before = fill(0.0f);
        if (movement_ != nullptr) before = hn::Mul(Levels{out}.load(place), old_scale);
        store_levels(hn::Clamp(hn::Div(place.load(in), divisor), fill(-127.0f), fill(127.0f)), place, out);
        if (movement_ == nullptr) return;
        const Vector now = hn::Mul(Levels{out}.load(place), new_scale);
        difference = most(difference, hn::Abs(hn::Sub(now, before)));
        value = most(value, hn::Abs(now));
      });
    }
    if (movement_ != nullptr) *movement_ = {largest_lane(difference), largest_lane(value)};
  }

  const StoreKvRows& op_;
  std::int64_t in_;
  std::int64_t out_;
  KvMovement* movement_;
  std::int64_t first_scale_;
};

void write_row(const StoreKvRows& op, std::int64_t row) {
  if (op.dtype == DType::kF32) return RowWriter(op, row).run<float>();
  RowWriter(op, row).run<BFloat16>();
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvloom::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvloom::cpu {
namespace {
HWY_EXPORT(write_row);
}

void run(const StoreKvRows& op) {
  if (op.dtype != DType::kF32 && op.dtype != DType::kBF16) {
    fail("store KV rows: rows of f32 or bf16, not {}", name_of(op.dtype));
  }
  if (op.pool.format == KvFormat::kInt8 && op.pool.scales == nullptr) {
    fail("store KV rows: int8 rows of {} heads of {} need scales", op.kv_heads, op.head_dim);
  }
  const auto write = HWY_DYNAMIC_DISPATCH(write_row);
#pragma omp parallel for schedule(static) if (op.rows * op.kv_heads * op.head_dim >= (1 << 17))
  for (std::int64_t row = 0; row < op.rows; ++row) write(op, row);
}

}  // namespace kvloom::cpu
#endif
