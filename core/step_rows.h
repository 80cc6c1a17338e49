// The rows that one forward step of inference computes: of which sequences, at which positions, by which layers. Rows
// of all runs go through each layer together, once; a run knows only its own sequence (DESIGN 12).
#pragma once

#include <cstdint>
#include <vector>

#include "core/shard.h"

namespace kvloom {

enum class RowKind : std::uint8_t {
  kDecode,     // tokens after the prompt: what sequential semantics compute. Upward reads see earlier tokens alone, so
               // where a map has them a run has one row
  kChunk,      // rows of a prompt in layers that are not iterated
  kWavefront,  // one pass of an iterated segment over a window of a prompt (DESIGN 5)
};

// Consecutive positions [first_position, first_position + rows) of one sequence.
struct RowRun {
  std::int32_t slot = 0;  // the sequence's place: its page tables, and the hidden states kept between its segments
  RowKind kind = RowKind::kDecode;
  LayerRange layers{};
  std::int64_t first_position = 0;
  std::int32_t rows = 0;
  // Of a prompt: where the block of hidden states begins that runs of its segments hand on to each other; a run lies
  // within one block. Rows enter at layers.first from the embedding when that is 0, else from there, and are left there
  // when layers.end is not the model's last.
  std::int64_t block_first = 0;
  // Logits are wanted of positions from here on. Layers above the last KV layer run for these rows alone.
  std::int64_t wanted_from = 0;
  // kWavefront: so many of the last rows were in no pass before and start from a guess.
  std::int32_t entering = 0;
  // kWavefront: so many of the first rows settle in this pass however far they moved; at least the first one, which
  // has read settled K/V alone. With Settling::kForced they are the ones that settle, all or none.
  std::int32_t forced = 1;

  std::int64_t end_position() const { return first_position + rows; }

  friend bool operator==(const RowRun&, const RowRun&) = default;
};

struct StepRows {
  std::vector<RowRun> runs;
  // Of the rows of runs that begin at layer 0, run by run.
  std::vector<std::int32_t> tokens;

  friend bool operator==(const StepRows&, const StepRows&) = default;
};

// What a step has to say of its runs, besides logits.
struct StepOutcome {
  // By run. kWavefront: so many of the first rows have settled by the tolerance, those that `forced` settles left
  // aside; other kinds: all of them.
  std::vector<std::int32_t> settled;
  // By run, kWavefront: how far the settled rows' K/V moved in this pass at most, relative to the tolerance's measure.
  std::vector<float> residual;
};

}  // namespace kvloom
