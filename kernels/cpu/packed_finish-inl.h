// What comes after the sums of a packed product. Included once for every instruction set.
#if defined(KVLOOM_PACKED_FINISH_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef KVLOOM_PACKED_FINISH_INL
#undef KVLOOM_PACKED_FINISH_INL
#else
#define KVLOOM_PACKED_FINISH_INL
#endif

#include "kernels/cpu/packed_kernels.h"
#include "kernels/cpu/packed_layout.h"
#include "kernels/cpu/vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvloom::cpu {
namespace HWY_NAMESPACE {
namespace {

template <typename T>
HWY_INLINE void finish_row_of(const FinishRow& row) {
  const PackedPart& part = row.part;
  const std::int64_t at = row.row * part.output_stride + row.first_output;
  T* output = static_cast<T*>(part.output) + at;
  const T* addend = part.addend == nullptr ? nullptr : static_cast<const T*>(part.addend) + at;
  const float* bias = part.bias == nullptr ? nullptr : part.bias + row.first_output;
  const float* scales =
      part.shape.format == WeightFormat::kInt8 ? scales_of(part.shape, part.packed) + row.first_output : nullptr;
  for_vectors(0, row.outputs, [&](auto place) HWY_ATTR {
    Vector sum = place.load(row.sums);
    if (scales != nullptr) sum = hn::Mul(sum, place.load(scales));
    if (bias != nullptr) sum = hn::Add(sum, place.load(bias));
    if (addend != nullptr) sum = hn::Add(sum, place.load(addend));
    place.store(sum, output);
  });
}

HWY_INLINE void finish_row(const FinishRow& row) {
  if (row.part.output_dtype == DType::kF32) {
    finish_row_of<float>(row);
  } else {
    finish_row_of<BFloat16>(row);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvloom::cpu
HWY_AFTER_NAMESPACE();

#endif
