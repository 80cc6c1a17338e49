// How much of a tensor a conversion holds at a time, and the element moves that it is made of.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvloom {

inline constexpr std::size_t kBlockBytes = std::size_t{16} << 20;

// to [columns, rows] = from [rows, columns], elements of `element` bytes.
void transpose_elements(const std::byte* from, std::int64_t rows, std::int64_t columns, std::size_t element,
                        std::byte* to);

}  // namespace kvloom
