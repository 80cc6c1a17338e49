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

// `state`: for how many rows tiles are made; below zero: for so many queries of a turned product.
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

// Sums are tiles 0 to 3, of sixteen keys each, queries tile 4, keys 5 and 6.
void configure_turned(std::int64_t queries) {
  TileConfig config;
  const auto bytes = static_cast<std::uint16_t>(4 * queries);
  for (int tile = 0; tile < 7; ++tile) {
    config.row_bytes[tile] = tile < 5 ? bytes : kRowBytes;
    config.rows[tile] = kTileRows;
  }
  __asm__ volatile("ldtilecfg %0" ::"m"(config));
}

void multiply_turned(const Bf16TurnedProduct& product, std::int64_t& state) {
  finish_writes();
  if (state != -product.query_count) configure_turned(product.query_count);
  state = -product.query_count;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  const std::int64_t stride = product.key_stride * 2;
  const auto& keys = product.keys;
  for (std::int64_t k = 0; k < product.inner; k += kTileInputs) {
    _tile_loadd(4, product.queries + k * 16, kRowBytes);
    if (keys[0] != nullptr) {
      _tile_loadd(5, keys[0] + k, stride);
      _tile_dpbf16ps(0, 5, 4);
    }
    if (keys[1] != nullptr) {
      _tile_loadd(6, keys[1] + k, stride);
      _tile_dpbf16ps(1, 6, 4);
    }
    if (keys[2] != nullptr) {
      _tile_loadd(5, keys[2] + k, stride);
      _tile_dpbf16ps(2, 5, 4);
    }
    if (keys[3] != nullptr) {
      _tile_loadd(6, keys[3] + k, stride);
      _tile_dpbf16ps(3, 6, 4);
    }
  }
  float* c = product.c;
  const std::int64_t c_bytes = product.c_stride * 4;
  if (keys[0] != nullptr) _tile_stored(0, c, c_bytes);
  if (keys[1] != nullptr) _tile_stored(1, c + 16 * product.c_stride, c_bytes);
  if (keys[2] != nullptr) _tile_stored(2, c + 32 * product.c_stride, c_bytes);
  if (keys[3] != nullptr) _tile_stored(3, c + 48 * product.c_stride, c_bytes);
}

std::int64_t begin() { return 0; }
void end() { _tile_release(); }

#pragma GCC pop_options

}  // namespace

Bf16Products amx_products() { return {"amx", begin, multiply, multiply_turned, end}; }

}  // namespace kvloom::cpu
