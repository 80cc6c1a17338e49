#include "parallel/reduce_in_order.h"

#include <algorithm>
#include <array>
#include <type_traits>

namespace kvloom {
namespace {

template <typename T>
T add(T a, T b) {
  if constexpr (std::is_integral_v<T>) {
    using Unsigned = std::make_unsigned_t<T>;
    return static_cast<T>(static_cast<Unsigned>(static_cast<Unsigned>(a) + static_cast<Unsigned>(b)));
  } else {
    return a + b;
  }
}

template <typename T>
void reduce(std::span<const void* const> inputs, std::size_t begin, std::size_t end, Reduction reduction,
            void* output) {
  using Sum = std::conditional_t<std::is_same_v<T, BFloat16>, float, T>;
  constexpr std::size_t kBlock = 1024;
  std::array<Sum, kBlock> sums;
  for (std::size_t start = begin; start < end; start += kBlock) {
    const std::size_t count = std::min(kBlock, end - start);
    const T* first = static_cast<const T*>(inputs[0]) + start;
    for (std::size_t i = 0; i < count; ++i) sums[i] = static_cast<Sum>(first[i]);
    for (const void* other : inputs.subspan(1)) {
      const T* values = static_cast<const T*>(other) + start;
      if (reduction == Reduction::kSum) {
        for (std::size_t i = 0; i < count; ++i) sums[i] = add(sums[i], static_cast<Sum>(values[i]));
      } else {
        for (std::size_t i = 0; i < count; ++i) sums[i] = std::max(sums[i], static_cast<Sum>(values[i]));
      }
    }
    T* out = static_cast<T*>(output) + start;
    for (std::size_t i = 0; i < count; ++i) out[i] = static_cast<T>(sums[i]);
  }
}

}  // namespace

void reduce_in_order(std::span<const void* const> inputs, std::size_t begin, std::size_t end, DType dtype,
                     Reduction reduction, void* output) {
  switch (dtype) {
    case DType::kF32:
      return reduce<float>(inputs, begin, end, reduction, output);
    case DType::kBF16:
      return reduce<BFloat16>(inputs, begin, end, reduction, output);
    case DType::kF64:
      return reduce<double>(inputs, begin, end, reduction, output);
    case DType::kI32:
      return reduce<std::int32_t>(inputs, begin, end, reduction, output);
    case DType::kI64:
      return reduce<std::int64_t>(inputs, begin, end, reduction, output);
    case DType::kU8:
      return reduce<std::uint8_t>(inputs, begin, end, reduction, output);
    default:
      fail("reduction: ranks do not exchange {}", name_of(dtype));
  }
}

}  // namespace kvloom
