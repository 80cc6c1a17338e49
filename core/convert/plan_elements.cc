// What a plan does to elements: cut, turn, cast.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/convert/plan.h"
#include "core/convert/plan_limits.h"
#include "kernels/elementwise.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

bool is_real(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16 || dtype == DType::kF64;
}

void cast_once(const void* from, DType from_dtype, void* to, DType to_dtype, std::int64_t count) {
  cpu::run(Cast{
      .input = from, .output = to, .rows = 1, .columns = count, .input_dtype = from_dtype, .output_dtype = to_dtype});
}

// Whether values of one can lie beyond the largest of the other.
bool can_overflow(DType from, DType to) {
  if (from == to) return false;
  return to == DType::kF16 || from == DType::kF64 || (from == DType::kF32 && to == DType::kBF16);
}

// Infinite or no number: every bit of the exponent is set.
template <typename Bits>
bool has_all(const std::byte* values, std::int64_t count, Bits exponent) {
  bool any = false;
  for (std::int64_t i = 0; i < count; ++i) {
    Bits value = 0;
    std::memcpy(&value, values + static_cast<std::size_t>(i) * sizeof value, sizeof value);
    any |= (value & exponent) == exponent;
  }
  return any;
}

bool any_not_finite(const std::byte* values, DType dtype, std::int64_t count) {
  if (dtype == DType::kF16) return has_all<std::uint16_t>(values, count, 0x7c00);
  if (dtype == DType::kBF16) return has_all<std::uint16_t>(values, count, 0x7f80);
  return has_all<std::uint32_t>(values, count, 0x7f800000);
}

std::vector<double> as_doubles(const std::byte* values, DType dtype, std::int64_t count) {
  std::vector<double> wide(static_cast<std::size_t>(count));
  if (dtype == DType::kF64) {
    std::memcpy(wide.data(), values, wide.size() * sizeof(double));
    return wide;
  }
  std::vector<float> floats(wide.size());
  cast_elements(values, dtype, reinterpret_cast<std::byte*>(floats.data()), DType::kF32, count);
  std::ranges::copy(floats, wide.begin());
  return wide;
}

}  // namespace

std::vector<Rectangle> blocks_of(const Rectangle& whole, DType dtype, std::size_t bytes) {
  const std::int64_t count = element_count(whole.shape);
  if (count == 0) return {};
  const std::size_t all = static_cast<std::size_t>(count) * size_of(dtype);
  if (whole.shape.empty() || all <= bytes) return {whole};
  const std::int64_t rows = whole.shape[0];
  const std::size_t row_bytes = all / static_cast<std::size_t>(rows);
  const auto rows_a_block = static_cast<std::int64_t>(std::max<std::size_t>(1, bytes / row_bytes));
  std::vector<Rectangle> blocks;
  for (std::int64_t row = 0; row < rows; row += rows_a_block) {
    Rectangle& block = blocks.emplace_back(whole);
    block.offset[0] += row;
    block.shape[0] = std::min(rows_a_block, rows - row);
  }
  return blocks;
}

bool is_castable(DType from, DType to) { return is_real(from) && is_real(to) && to != DType::kF64; }

void cast_elements(const std::byte* from, DType from_dtype, std::byte* to, DType to_dtype, std::int64_t count) {
  if (from_dtype == to_dtype) {
    std::memcpy(to, from, static_cast<std::size_t>(count) * size_of(to_dtype));
  } else if (to_dtype == DType::kF16 && from_dtype != DType::kF32) {
    std::vector<float> wide(static_cast<std::size_t>(count));
    cast_once(from, from_dtype, wide.data(), DType::kF32, count);
    cast_once(wide.data(), DType::kF32, to, to_dtype, count);
  } else {
    cast_once(from, from_dtype, to, to_dtype, count);
  }
}

Overflow overflow_of(const std::byte* from, DType from_dtype, const std::byte* to, DType to_dtype, std::int64_t count) {
  Overflow overflow;
  if (!can_overflow(from_dtype, to_dtype) || !any_not_finite(to, to_dtype, count)) return overflow;
  const std::vector<double> before = as_doubles(from, from_dtype, count);
  const std::vector<double> after = as_doubles(to, to_dtype, count);
  for (std::size_t i = 0; i < before.size(); ++i) {
    if (!std::isfinite(before[i]) || !std::isinf(after[i])) continue;
    ++overflow.values;
    overflow.largest = std::max(overflow.largest, std::fabs(before[i]));
  }
  return overflow;
}

void transpose_elements(const std::byte* from, std::int64_t rows, std::int64_t columns, std::size_t element,
                        std::byte* to) {
  // Square tiles, so that both sides stay in the cache.
  constexpr std::int64_t kTile = 32;
  for (std::int64_t row = 0; row < rows; row += kTile) {
    for (std::int64_t column = 0; column < columns; column += kTile) {
      for (std::int64_t r = row; r < std::min(row + kTile, rows); ++r) {
        for (std::int64_t c = column; c < std::min(column + kTile, columns); ++c) {
          std::memcpy(to + static_cast<std::size_t>(c * rows + r) * element,
                      from + static_cast<std::size_t>(r * columns + c) * element, element);
        }
      }
    }
  }
}

}  // namespace kvloom
