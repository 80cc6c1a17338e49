// Products of packed matrices with bf16 input by AMX: tiles of 16 rows by 16 outputs, 32 inputs at a time.
#include "kernels/cpu/packed_amx.h"

#include <cpuid.h>
#include <hwy/base.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "kernels/cpu/packed_kernels.h"
#include "kernels/cpu/packed_layout.h"
#include "kernels/cpu/scratch.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16,amx-tile,amx-bf16")
#include "kernels/cpu/amx_tiles.h"
#include "kernels/cpu/bf16_intrinsics.h"

namespace kvloom::cpu {
namespace {

// The arranged input of a block of rows: [inner / 32][count][32].
struct Rows {
  const char* tiles;
  std::int64_t count;

  Rows from_step(std::int64_t step) const { return {tiles + step * count * kRowBytes, count}; }
};

// Sums of up to 4 tiles: [4][16][16].
constexpr std::int64_t kSums = 4 * 16 * 16;

inline void zero_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}
inline void load_sums(const float* sums) {
  _tile_loadd(0, sums, kRowBytes);
  _tile_loadd(1, sums + 256, kRowBytes);
  _tile_loadd(2, sums + 512, kRowBytes);
  _tile_loadd(3, sums + 768, kRowBytes);
}
inline void store_sums(float* sums) {
  _tile_stored(0, sums, kRowBytes);
  _tile_stored(1, sums + 256, kRowBytes);
  _tile_stored(2, sums + 512, kRowBytes);
  _tile_stored(3, sums + 768, kRowBytes);
}

// Four panels of bf16 as they lie in memory, read once: far ahead of the products they are fetched.
class StoredTiles {
 public:
  StoredTiles(const PanelProduct& product, std::int64_t panel) {
    const PackedShape& shape = product.part.shape;
    for (std::int64_t p = 0; p < 4; ++p) {
      // Where there are fewer, the last one stands in; its sums are not looked at.
      panels_[p] = panel_at(shape, product.part.packed, std::min(panel + p, product.last_panel - 1));
    }
  }

  template <int kCount>
  __attribute__((always_inline)) inline void prepare(std::int64_t step) {
    constexpr std::int64_t kAhead = 4;  // steps
    for (int p = 0; p < kCount; ++p) {
      const char* at = panels_[p] + (step + kAhead - 1) * kTileBytes;
      for (std::int64_t line = 0; line < kTileBytes; line += 64) _mm_prefetch(at + line, _MM_HINT_T0);
    }
  }
  __attribute__((always_inline)) inline const char* tile(int p, std::int64_t step) const {
    return panels_[p] + step * kTileBytes;
  }

 private:
  const char* panels_[4];
};

// Four panels of int8, widened a step before their products.
class WidenedTiles {
 public:
  WidenedTiles(const PanelProduct& product, std::int64_t panel) {
    const PackedShape& shape = product.part.shape;
    for (std::int64_t p = 0; p < 4; ++p) {
      panels_[p] = panel_at(shape, product.part.packed, std::min(panel + p, product.last_panel - 1));
    }
    last_step_ = inner_of(shape) / kTileInputs - 1;
  }

  template <int kCount>
  __attribute__((always_inline)) inline void prepare(std::int64_t step) {
    constexpr std::int64_t kAhead = 4;  // steps
    step = std::min(step, last_step_);
    for (int p = 0; p < kCount; ++p) {
      const char* from = panels_[p] + step * (kTileBytes / 2);
      for (std::int64_t line = 0; line < kTileBytes / 2; line += 64) {
        _mm_prefetch(from + kAhead * (kTileBytes / 2) + line, _MM_HINT_T0);
      }
      widen_panel(levels_, from, kTileInputs, tiles_[step % 2][p]);
    }
    finish_writes();
  }
  __attribute__((always_inline)) inline const char* tile(int p, std::int64_t step) const { return tiles_[step % 2][p]; }

 private:
  Levels levels_;
  const char* panels_[4];
  std::int64_t last_step_;
  alignas(64) char tiles_[2][4][kTileBytes];
};

// Up to 16 rows by 4 panels.
template <typename Tiles>
void multiply_one_by_four(Rows rows, Tiles& tiles, std::int64_t steps, float* sums) {
  zero_sums();
  tiles.template prepare<4>(0);
  for (std::int64_t step = 0; step < steps; ++step) {
    tiles.template prepare<4>(step + 1);
    _tile_loadd(4, rows.from_step(step).tiles, kRowBytes);
    _tile_loadd(5, tiles.tile(0, step), kRowBytes);
    _tile_dpbf16ps(0, 4, 5);
    _tile_loadd(6, tiles.tile(1, step), kRowBytes);
    _tile_dpbf16ps(1, 4, 6);
    _tile_loadd(7, tiles.tile(2, step), kRowBytes);
    _tile_dpbf16ps(2, 4, 7);
    _tile_loadd(5, tiles.tile(3, step), kRowBytes);
    _tile_dpbf16ps(3, 4, 5);
  }
  store_sums(sums);
}

// 17 to 32 rows by 2 panels.
template <typename Tiles>
void multiply_two_by_two(Rows first, Rows second, Tiles& tiles, std::int64_t steps, float* sums) {
  zero_sums();
  tiles.template prepare<2>(0);
  for (std::int64_t step = 0; step < steps; ++step) {
    tiles.template prepare<2>(step + 1);
    _tile_loadd(6, tiles.tile(0, step), kRowBytes);
    _tile_loadd(4, first.from_step(step).tiles, kRowBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, tiles.tile(1, step), kRowBytes);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, second.from_step(step).tiles, kRowBytes);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  store_sums(sums);
}

// Some steps of two panels of bf16 that many rows pass by.
struct TwoPanels {
  const char* first;
  const char* second;
  std::int64_t steps;
};

// Memory that is fetched while rows pass by: pieces of two panels, some lines of both a step.
struct Fetch {
  const char* first;
  const char* second;
  std::int64_t lines;
};

// Sums of a block of rows by two panels that are whole, and how many of its rows have become output.
class Unfinished {
 public:
  Unfinished() = default;
  Unfinished(const FinishPanel* panels, const float* sums, std::int64_t row, const RowCounts& rows)
      : panels_(panels), sums_(sums), row_(row), rows_(rows.first + rows.second), first_rows_(rows.first) {}

  __attribute__((always_inline)) inline void finish(std::int64_t count) {
    for (const std::int64_t end = std::min(rows_, next_ + count); next_ < end; ++next_) {
      const bool is_first = next_ < first_rows_;
      const float* sums = sums_ + (is_first ? next_ : next_ - first_rows_ + 32) * kPanel;
      panels_[0].write_two(row_ + (is_first ? next_ : next_ - first_rows_ + kTileRows), _mm512_load_ps(sums),
                           panels_[1], _mm512_load_ps(sums + 256));
    }
  }
  void finish_all() { finish(rows_); }

 private:
  const FinishPanel* panels_ = nullptr;
  const float* sums_ = nullptr;
  std::int64_t row_ = 0;
  std::int64_t rows_ = 0;
  std::int64_t first_rows_ = 0;
  std::int64_t next_ = 0;
};

// Adds the products to the sums in tiles. Rows are read past the nearest cache, which holds the panels. What is left of
// the block before becomes output meanwhile: a processor does both at once.
HWY_NOINLINE void add_two_by_two(Rows first, Rows second, const TwoPanels& panels, Fetch& fetch, Unfinished& before) {
  const char* a = first.tiles;
  const char* c = second.tiles;
  const char* b = panels.first;
  const std::int64_t across = panels.second - panels.first;
  const std::int64_t a_step = first.count * kRowBytes;
  const std::int64_t c_step = second.count * kRowBytes;
  const char* next = fetch.first;
  const std::int64_t next_across = fetch.second - fetch.first;
  const char* end = b + panels.steps * kTileBytes;
  const std::int64_t rows_a_step = (2 * kTileRows + panels.steps - 1) / panels.steps;
  for (; b != end; b += kTileBytes, a += a_step, c += c_step) {
    for (std::int64_t line = 0; line < fetch.lines; ++line, next += 64) {
      _mm_prefetch(next, _MM_HINT_T1);
      _mm_prefetch(next + next_across, _MM_HINT_T1);
    }
    _tile_loadd(6, b, kRowBytes);
    _tile_stream_loadd(4, a, kRowBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, b + across, kRowBytes);
    _tile_dpbf16ps(1, 4, 7);
    _tile_stream_loadd(5, c, kRowBytes);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    before.finish(rows_a_step);
  }
  before.finish_all();
  fetch.first = next;
  fetch.second = next + next_across;
}

class AmxProduct {
 public:
  explicit AmxProduct(const PanelProduct& product)
      : product_(product),
        shape_(product.part.shape),
        inner_(inner_of(shape_)),
        steps_(inner_ / kTileInputs),
        rows_(product.last_row - product.first_row) {}

  void run() {
    finish_writes();
    if (rows_ <= 2 * kTileRows) {
      if (shape_.format == WeightFormat::kInt8) {
        multiply_few<WidenedTiles>();
      } else {
        multiply_few<StoredTiles>();
      }
    } else {
      multiply_many();
    }
    _tile_release();
  }

 private:
  Rows rows_at(std::int64_t row) const {
    return {static_cast<const char*>(product_.arranged) + row * inner_ * 2, std::min(kTileRows, product_.rows - row)};
  }

  // `sums` [rows][16] of one tile.
  void finish(std::int64_t row, std::int64_t rows, std::int64_t panel, const float* sums) const {
    if (panel >= product_.last_panel) return;
    const FinishPanel finish(product_.part, panel);
    for (std::int64_t i = 0; i < rows; ++i) finish.write(row + i, _mm512_load_ps(sums + i * kPanel));
  }

  // Every panel is read once.
  template <typename Tiles>
  void multiply_few() {
    alignas(64) float sums[kSums];
    const std::int64_t row = product_.first_row;
    const Rows first = rows_at(row);
    if (rows_ <= kTileRows) {
      configure({first.count, 0});
      for (std::int64_t panel = product_.first_panel; panel < product_.last_panel; panel += 4) {
        Tiles tiles(product_, panel);
        multiply_one_by_four(first, tiles, steps_, sums);
        for (std::int64_t p = 0; p < 4; ++p) finish(row, first.count, panel + p, sums + p * 256);
      }
      return;
    }
    const Rows second = rows_at(row + kTileRows);
    configure({first.count, second.count});
    for (std::int64_t panel = product_.first_panel; panel < product_.last_panel; panel += 2) {
      Tiles tiles(product_, panel);
      multiply_two_by_two(first, second, tiles, steps_, sums);
      for (std::int64_t p = 0; p < 2; ++p) {
        finish(row, first.count, panel + p, sums + p * 256);
        finish(row + kTileRows, second.count, panel + p, sums + (2 + p) * 256);
      }
    }
  }

  // The nearest cache holds two panels while all rows pass by. Where they have too many inputs for it, a part of them,
  // and the core's own cache holds that part of all rows while all panels pass by, with the sums.
  void multiply_many() {
    static thread_local Scratch scratch;
    blocks_ = (rows_ + 2 * kTileRows - 1) / (2 * kTileRows);
    part_steps_ = steps_ <= kMostStepsAtOnce ? steps_ : kStepsAtOnce;
    const std::int64_t pairs = (product_.last_panel - product_.first_panel + 1) / 2;
    const std::int64_t sums_bytes = part_steps_ < steps_ ? pairs * blocks_ * kSums * 4 : 0;
    auto* memory = scratch.at_least(static_cast<std::size_t>(sums_bytes + 2 * part_steps_ * kTileBytes));
    auto* sums = reinterpret_cast<float*>(memory);
    for (std::int64_t step = 0; step < steps_; step += part_steps_) {
      for (std::int64_t pair = 0; pair < pairs; ++pair) {
        multiply_part(step, product_.first_panel + 2 * pair, sums + pair * blocks_ * kSums, memory + sums_bytes);
      }
    }
  }

  std::int64_t step_bytes() const { return kTileInputs * kPanel * bytes_of(shape_.format); }
  const char* stored(std::int64_t panel, std::int64_t step) const {
    return panel_at(shape_, product_.part.packed, std::min(panel, product_.last_panel - 1)) + step * step_bytes();
  }

  TwoPanels panels_at(std::int64_t panel, std::int64_t step, char* widened) const {
    const std::int64_t steps = std::min(part_steps_, steps_ - step);
    if (shape_.format != WeightFormat::kInt8) return {stored(panel, step), stored(panel + 1, step), steps};
    const Levels levels;
    char* second = widened + part_steps_ * kTileBytes;
    widen_panel(levels, stored(panel, step), steps * kTileInputs, widened);
    widen_panel(levels, stored(panel + 1, step), steps * kTileInputs, second);
    finish_writes();
    return {widened, second, steps};
  }

  // What comes after a part: the same inputs of the next panels, or the next inputs of the first.
  Fetch fetch_after(std::int64_t panel, std::int64_t step) const {
    panel += 2;
    if (panel >= product_.last_panel) {
      panel = product_.first_panel;
      step += part_steps_;
    }
    if (step >= steps_) return {nullptr, nullptr, 0};
    const std::int64_t lines = std::min(part_steps_, steps_ - step) * step_bytes() / 64;
    const std::int64_t steps = blocks_ * std::min(part_steps_, steps_ - step);
    return {stored(panel, step), stored(panel + 1, step), (lines + steps - 1) / steps};
  }

  // `sums` [blocks][kSums], where they are parts.
  void multiply_part(std::int64_t step, std::int64_t panel, float* sums, char* widened) {
    const TwoPanels panels = panels_at(panel, step, widened);
    const bool is_last = step + panels.steps == steps_;
    // Where there is one panel alone, the other's sums come to nothing.
    const FinishPanel finish[2] = {FinishPanel(product_.part, panel), FinishPanel(product_.part, panel + 1)};
    alignas(64) float whole[2][kSums];
    Fetch fetch = fetch_after(panel, step);
    Unfinished unfinished;
    RowCounts configured{0, 0};
    int turn = 0;
    for (std::int64_t row = product_.first_row; row < product_.last_row; row += 2 * kTileRows, sums += kSums) {
      const Rows first = rows_at(row);
      const bool two = row + kTileRows < product_.last_row;
      const Rows second = two ? rows_at(row + kTileRows) : first;
      if (configured.first != first.count || configured.second != second.count) {
        configured = {first.count, second.count};
        configure(configured);
      }
      if (step == 0) {
        zero_sums();
      } else {
        load_sums(sums);
      }
      add_two_by_two(first.from_step(step), second.from_step(step), panels, fetch, unfinished);
      if (!is_last) {
        store_sums(sums);
        continue;
      }
      store_sums(whole[turn]);
      unfinished = Unfinished(finish, whole[turn], row, {first.count, two ? second.count : 0});
      turn = 1 - turn;
    }
    finish_writes();
    unfinished.finish_all();
  }

  // Tiles of two panels that the nearest cache holds, beside rows that pass by; some more cost less than sums that are
  // put away and fetched again.
  static constexpr std::int64_t kStepsAtOnce = 16;
  static constexpr std::int64_t kMostStepsAtOnce = 24;

  const PanelProduct& product_;
  const PackedShape& shape_;
  std::int64_t inner_;
  std::int64_t steps_;
  std::int64_t rows_;
  std::int64_t blocks_ = 0;      // of two tiles of rows
  std::int64_t part_steps_ = 0;  // of a part of the inputs
};

void multiply(const PanelProduct& product) { AmxProduct(product).run(); }

void arrange(const ArrangeRows& rows) {
  const std::int64_t inner = round_up(rows.inputs, kInputMultiple);
  for (std::int64_t first = rows.first; first < rows.last; first += kTileRows) {
    const std::int64_t count = std::min(kTileRows, rows.last - first);
    char* block = static_cast<char*>(rows.arranged) + first * inner * 2;
    for (std::int64_t i = 0; i < count; ++i) {
      const auto* from = static_cast<const BFloat16*>(rows.op.input) + (first + i) * rows.op.input_stride;
      char* to = block + i * kRowBytes;
      std::int64_t k = 0;
      for (; k + kTileInputs <= rows.inputs; k += kTileInputs, to += count * kRowBytes) {
        _mm512_store_si512(to, _mm512_loadu_si512(from + k));
      }
      if (k < rows.inputs) {
        const auto mask = static_cast<__mmask32>((std::uint64_t{1} << (rows.inputs - k)) - 1);
        _mm512_store_si512(to, _mm512_maskz_loadu_epi16(mask, from + k));
      }
    }
  }
}

#pragma GCC pop_options

std::size_t arranged_bytes(std::int64_t rows, std::int64_t inputs) {
  return static_cast<std::size_t>(rows * round_up(inputs, kInputMultiple) * 2);
}

}  // namespace

bool processor_has_amx() {
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  constexpr unsigned kAmxBF16 = 1u << 22;
  constexpr unsigned kAmxTile = 1u << 24;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & kAmxBF16) == 0 || (d & kAmxTile) == 0) return false;
  // A process asks Linux for tiles' state once, for all its threads.
  constexpr long kRequestPermission = 0x1023;
  constexpr long kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

PackedKernels amx_kernels() {
  return {.name = "amx",
          .input_dtype = DType::kBF16,
          .row_multiple = kTileRows,
          .rows_at_once = 512,
          .panels_at_once = 16,
          .arranged_bytes = arranged_bytes,
          .arrange = arrange,
          .multiply = multiply};
}

}  // namespace kvloom::cpu
