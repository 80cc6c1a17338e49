// Products of small f32 tiles on one thread, the inner work of attention.
#pragma once

#include <cstdint>

#include "kernels/matmul.h"

namespace kvloom::cpu {

// c [rows, columns] = a [rows, inner] b [inner, columns] (= or +=). All f32, rows `*_stride` apart; elements
// of a row of a are `a_inner_stride` apart, so that a transposed a costs nothing.
struct TileProduct {
  const float* a;
  const float* b;
  float* c;
  std::int64_t rows;
  std::int64_t columns;
  std::int64_t inner;
  std::int64_t a_stride;
  std::int64_t b_stride;
  std::int64_t c_stride;
  std::int64_t a_inner_stride = 1;
  Output output = Output::kOverwrite;
};

void multiply_tile(const TileProduct& op);

// In place: scores[r, c] = exp(scores[r, c] * scale - shift[r]); sums[r] = the row's sum.
// Columns outside [begin[r], end[r]) become exactly zero.
struct TileExp {
  float* scores;
  std::int64_t rows;
  std::int64_t columns;
  std::int64_t stride;
  float scale;
  const float* shift;
  const std::int64_t* begin;
  const std::int64_t* end;
  float* sums;
};

void exponentiate_tile(const TileExp& op);

}  // namespace kvloom::cpu
