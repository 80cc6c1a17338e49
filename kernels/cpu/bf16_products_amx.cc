#include <hwy/base.h>

#include <algorithm>

#include "kernels/cpu/bf16_products.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,amx-tile,amx-bf16")
#include "kernels/cpu/amx_tiles.h"

namespace kvloom::cpu {
namespace {

// Panel `panel`'s tile of inputs 32 * step and on.
__attribute__((always_inline)) inline const char* tile_of(const Bf16Product& product, std::int64_t panel,
                                                          std::int64_t step) {
  return product.b + (panel * (product.inner / kTileInputs) + step) * kTileBytes;
}

// Up to 16 rows from `row` on by 4 panels.
void multiply_four(const Bf16Product& product, std::int64_t row, std::int64_t panel) {
  float* c = product.c + row * product.c_stride + panel * 16;
  const std::int64_t c_bytes = product.c_stride * 4;
  if (product.output == Output::kAccumulate) {
    _tile_loadd(0, c, c_bytes);
    _tile_loadd(1, c + 16, c_bytes);
    _tile_loadd(2, c + 32, c_bytes);
    _tile_loadd(3, c + 48, c_bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  const BFloat16* a = product.a + row * product.a_stride;
  for (std::int64_t step = 0; step * kTileInputs < product.inner; ++step, a += kTileInputs) {
    _tile_loadd(4, a, product.a_stride * 2);
    _tile_loadd(5, tile_of(product, panel, step), kRowBytes);
    _tile_dpbf16ps(0, 4, 5);
    _tile_loadd(6, tile_of(product, panel + 1, step), kRowBytes);
    _tile_dpbf16ps(1, 4, 6);
    _tile_loadd(7, tile_of(product, panel + 2, step), kRowBytes);
    _tile_dpbf16ps(2, 4, 7);
    _tile_loadd(5, tile_of(product, panel + 3, step), kRowBytes);
    _tile_dpbf16ps(3, 4, 5);
  }
  _tile_stored(0, c, c_bytes);
  _tile_stored(1, c + 16, c_bytes);
  _tile_stored(2, c + 32, c_bytes);
  _tile_stored(3, c + 48, c_bytes);
}

void multiply_one(const Bf16Product& product, std::int64_t row, std::int64_t panel) {
  float* c = product.c + row * product.c_stride + panel * 16;
  if (product.output == Output::kAccumulate) {
    _tile_loadd(0, c, product.c_stride * 4);
  } else {
    _tile_zero(0);
  }
  const BFloat16* a = product.a + row * product.a_stride;
  for (std::int64_t step = 0; step * kTileInputs < product.inner; ++step, a += kTileInputs) {
    _tile_loadd(4, a, product.a_stride * 2);
    _tile_loadd(5, tile_of(product, panel, step), kRowBytes);
    _tile_dpbf16ps(0, 4, 5);
  }
  _tile_stored(0, c, product.c_stride * 4);
}

// `state`: for how many rows tiles are made.
void multiply(const Bf16Product& product, std::int64_t& state) {
  finish_writes();
  for (std::int64_t row = 0; row < product.rows; row += kTileRows) {
    const std::int64_t rows = std::min(kTileRows, product.rows - row);
    if (rows != state) configure({rows, 0});
    state = rows;
    std::int64_t panel = 0;
    for (; panel + 4 <= product.panels; panel += 4) multiply_four(product, row, panel);
    for (; panel < product.panels; ++panel) multiply_one(product, row, panel);
  }
}

std::int64_t begin() { return 0; }
void end() { _tile_release(); }

#pragma GCC pop_options

}  // namespace

Bf16Products amx_products() { return {"amx", begin, multiply, end}; }

}  // namespace kvloom::cpu
