// Rectangles of a tensor: what one rank holds, one file keeps, one load wants.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace kvloom {

struct Rectangle {
  Shape offset;  // in the global tensor
  Shape shape;   // as many axes as `offset`; none at all for a scalar

  friend bool operator==(const Rectangle&, const Rectangle&) = default;
};

// Elements of a shape that nobody has vouched for; nothing if a size is negative or the bytes (at most 8 an element)
// would not fit 63 bits.
std::optional<std::int64_t> checked_element_count(const Shape& shape);

// The rectangles that elements [begin, end) of a row-major tensor of one or two axes make, in the order of elements: at
// most part of a row, whole rows, part of a row.
std::vector<Rectangle> rectangles_of_range(const Shape& shape, std::int64_t begin, std::int64_t end);

bool is_inside(const Rectangle& rectangle, const Shape& global);

// What two rectangles of one tensor share; nothing if that has no elements.
std::optional<Rectangle> intersection(const Rectangle& one, const Rectangle& other);

// Why the rectangles do not cover every element of `global` exactly once; nothing if they do.
std::optional<std::string> tiling_fault(const Shape& global, std::span<const Rectangle> rectangles);

}  // namespace kvloom
