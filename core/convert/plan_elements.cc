// What a plan does to elements: cut, turn, cast.
#include <algorithm>
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
