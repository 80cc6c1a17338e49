// AMX's tiles. Included where a target pragma names AMX.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace kvloom::cpu {
namespace {

constexpr std::int64_t kTileRows = 16;
constexpr std::int64_t kTileBytes = 1024;
constexpr std::int64_t kTileInputs = 32;
constexpr std::int64_t kRowBytes = 64;  // of a tile

// Sums are tiles 0 to 3; a row block's inputs are tiles 4 and 5, weights 6 and 7, or 5 to 7 with one row block.
struct alignas(64) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};
};

// First and second block of rows, of which the second may be none.
struct RowCounts {
  std::int64_t first;
  std::int64_t second;
};

void configure(const RowCounts& counts) {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    config.row_bytes[tile] = kRowBytes;
    config.rows[tile] = kTileRows;
  }
  const auto first = static_cast<std::uint8_t>(counts.first);
  const auto second = static_cast<std::uint8_t>(counts.second);
  config.rows[0] = config.rows[1] = config.rows[4] = first;
  config.rows[2] = config.rows[3] = second == 0 ? first : second;
  if (second != 0) config.rows[5] = second;
  // GCC 12's intrinsic claims to read 8 bytes of it.
  __asm__ volatile("ldtilecfg %0" ::"m"(config));
}

// GCC 12's intrinsics don't say that tiles are loaded from memory: what was written before has to be there.
__attribute__((always_inline)) inline void finish_writes() { __asm__ volatile("" ::: "memory"); }

}  // namespace
}  // namespace kvloom::cpu
