#include "core/rectangle.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <vector>

namespace kvloom {
namespace {

std::string describe(const Rectangle& rectangle) {
  return fmt::format("{} at {}", to_string(rectangle.shape), to_string(rectangle.offset));
}

std::optional<std::string> overlap_fault(std::vector<Rectangle> sorted) {
  std::sort(sorted.begin(), sorted.end(),
            [](const Rectangle& one, const Rectangle& other) { return one.offset < other.offset; });
  for (std::size_t i = 0; i < sorted.size(); ++i) {
    const Rectangle& one = sorted[i];
    for (std::size_t j = i + 1; j < sorted.size(); ++j) {
      const Rectangle& other = sorted[j];
      if (!one.shape.empty() && other.offset[0] >= one.offset[0] + one.shape[0]) break;
      if (intersection(one, other)) return fmt::format("slices {} and {} overlap", describe(one), describe(other));
    }
  }
  return std::nullopt;
}

}  // namespace

std::optional<std::int64_t> checked_element_count(const Shape& shape) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max() / 8;
  std::int64_t count = 1;
  bool empty = false;
  for (const std::int64_t size : shape) {
    if (size < 0) return std::nullopt;
    if (size == 0) {
      empty = true;
      continue;
    }
    if (count > kMost / size) return std::nullopt;
    count *= size;
  }
  return empty ? 0 : count;
}

std::vector<Rectangle> rectangles_of_range(const Shape& shape, std::int64_t begin, std::int64_t end) {
  if (begin >= end) return {};
  if (shape.size() == 1) return {{{begin}, {end - begin}}};
  if (shape.size() != 2) fail("a range of a tensor of {} axes; one or two are known", shape.size());
  const std::int64_t columns = shape[1];
  std::vector<Rectangle> rectangles;
  while (begin < end) {
    const std::int64_t column = begin % columns;
    const std::int64_t rows = column == 0 ? (end - begin) / columns : 0;
    if (rows > 0) {
      rectangles.push_back({{begin / columns, 0}, {rows, columns}});
      begin += rows * columns;
    } else {
      const std::int64_t count = std::min(columns - column, end - begin);
      rectangles.push_back({{begin / columns, column}, {1, count}});
      begin += count;
    }
  }
  return rectangles;
}

bool is_inside(const Rectangle& rectangle, const Shape& global) {
  if (rectangle.offset.size() != global.size() || rectangle.shape.size() != global.size()) return false;
  for (std::size_t axis = 0; axis < global.size(); ++axis) {
    const std::int64_t offset = rectangle.offset[axis];
    const std::int64_t size = rectangle.shape[axis];
    if (offset < 0 || size < 0 || size > global[axis] || offset > global[axis] - size) return false;
  }
  return true;
}

std::optional<Rectangle> intersection(const Rectangle& one, const Rectangle& other) {
  Rectangle shared = one;
  for (std::size_t axis = 0; axis < one.shape.size(); ++axis) {
    const std::int64_t begin = std::max(one.offset[axis], other.offset[axis]);
    const std::int64_t end = std::min(one.offset[axis] + one.shape[axis], other.offset[axis] + other.shape[axis]);
    if (begin >= end) return std::nullopt;
    shared.offset[axis] = begin;
    shared.shape[axis] = end - begin;
  }
  return shared;
}

std::optional<std::string> tiling_fault(const Shape& global, std::span<const Rectangle> rectangles) {
  const std::optional<std::int64_t> wanted = checked_element_count(global);
  if (!wanted) return fmt::format("its shape {} makes no sense", to_string(global));
  std::int64_t covered = 0;
  std::vector<Rectangle> filled;
  for (const Rectangle& rectangle : rectangles) {
    if (!is_inside(rectangle, global)) {
      return fmt::format("slice {} is not inside {}", describe(rectangle), to_string(global));
    }
    const std::int64_t count = element_count(rectangle.shape);
    if (count == 0) continue;
    if (count > *wanted - covered) return fmt::format("its slices have more elements than {}", to_string(global));
    covered += count;
    filled.push_back(rectangle);
  }
  if (covered != *wanted) {
    return fmt::format("its slices hold {} of the {} elements of {}", covered, *wanted, to_string(global));
  }
  return overlap_fault(std::move(filled));
}

}  // namespace kvloom
