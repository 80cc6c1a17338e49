// Small products of bf16 with f32 sums, as attention over blocks of keys takes them, where a processor multiplies bf16.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "kernels/dtype.h"
#include "kernels/matmul.h"

namespace kvloom::cpu {

// c [rows, panels * 16] (= or +=) a [rows, inner] b. b lies in panels of 16 columns, [inner / 2][16][2]; inner is a
// multiple of 32, and so are a_stride (in elements) and 64 bytes of every row of a. A row of c depends on its row of a
// alone, whatever `rows` is.
struct Bf16Product {
  const BFloat16* a;
  std::int64_t a_stride;
  std::int64_t rows;
  const char* b;
  std::int64_t panels;
  std::int64_t inner;
  float* c;
  std::int64_t c_stride;
  Output output;
};

// c [64, query_count] (=) 64 keys times up to 16 queries. c[j, r] has the bits that multiply gives row r, a query, with
// key j in column j of b.
struct Bf16TurnedProduct {
  std::array<const BFloat16*, 4> keys;  // sixteen each, key_stride elements apart; null: theirs is not asked for
  std::int64_t key_stride;
  const BFloat16* queries;  // [inner / 2][16][2], of each pair's 16 the first query_count
  std::int64_t query_count;
  std::int64_t inner;  // a multiple of 32
  float* c;
  std::int64_t c_stride;
};

// Of one processor. A thread begins before its products and ends after them; between, nothing else of it uses tiles.
// `state` is what begin returned.
struct Bf16Products {
  const char* name;
  std::int64_t (*begin)();
  void (*multiply)(const Bf16Product& product, std::int64_t& state);
  // Null where turning the keys for `multiply` is as good.
  void (*multiply_turned)(const Bf16TurnedProduct& product, std::int64_t& state);
  void (*end)();
};

// Best first; empty where the processor has none.
std::span<const Bf16Products> bf16_products();

Bf16Products amx_products();
Bf16Products avx512_bf16_products();

}  // namespace kvloom::cpu
