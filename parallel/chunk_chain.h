// What one micro-batch does in a pipeline: the iteration plan cut by stages into chunks, and what must travel between
// ranks (DESIGN 6). A pure function of plan, map and layout; schedule, executor and cost model all read it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "core/iteration_plan.h"
#include "core/kv_map.h"
#include "parallel/stage_layout.h"

namespace kvloom {

// Layer runs [first_run, end_run) of plan.steps[step].layers, all on one stage. On each rank a micro-batch's chunks run
// in the order of the chain, and those that keep gradient run backward in the reverse order; so whatever a chunk uses
// of its own rank is there.
struct Chunk {
  std::size_t step;
  std::size_t first_run;
  std::size_t end_run;
  int stage;
  int rank;
  bool keeps_gradient;
  int input;           // chunk whose output hidden states it starts from; kEmbedding: the embedding's
  bool is_head_input;  // its output goes to the head

  friend bool operator==(const Chunk&, const Chunk&) = default;
};
inline constexpr int kEmbedding = -1;

enum class EdgeKind : std::uint8_t { kHidden, kKeyValue };

// What `from_chunk` makes for rank `to_rank`: its output hidden states, or what is read there of the K and V of
// `source` in `pass`. Crosses once a micro-batch, whatever the number of its readers there. Where `returns_gradient`,
// the gradient comes back along it.
struct Edge {
  EdgeKind kind;
  int from_chunk;
  int from_rank;
  int to_rank;
  int source;                // kKeyValue only, else -1
  int pass;                  // kKeyValue: the source's pass
  ByPart<bool> carries;      // kKeyValue: K, V or both
  std::vector<int> readers;  // chunks of to_rank that use it, ascending
  bool returns_gradient;
  // kKeyValue: layer runs on to_rank whose dK, or dV, the returned gradient sums; 0: it has no such part.
  ByPart<int> gradient_reads;

  // Tensors that cross, and that come back: one of hidden states, one for each part of K and V.
  int tensors() const;
  int gradient_tensors() const;

  friend bool operator==(const Edge&, const Edge&) = default;
};

struct ChunkChain {
  int ranks = 1;
  std::vector<Chunk> chunks;  // in the order of the plan
  std::vector<Edge> edges;    // ascending from_chunk

  // By chunk, indices into `edges`: what it must have received before it runs forward and no earlier chunk of its rank
  // has, and what is sent once it has run.
  std::vector<std::vector<int>> needs;
  std::vector<std::vector<int>> gives;
  // The same for gradients that come back: what it must have received before it runs backward (along edges out of it),
  // and what is complete, and sent, once it has run backward (along edges into its rank; it is the last of their
  // readers to do so).
  std::vector<std::vector<int>> backward_needs;
  std::vector<std::vector<int>> backward_gives;
};

ChunkChain make_chunk_chain(const IterationPlan& plan, const KvMap& map, const StageLayout& layout);

// For messages: "K/V of layer 10 in pass 3, from rank 2 to rank 0".
std::string describe(const Edge& edge);

}  // namespace kvloom
