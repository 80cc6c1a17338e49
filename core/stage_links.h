// How the ranks that hold a model's layers one above the other, its stages, hand on what a step of inference leaves
// (DESIGN 6, 12). core/forward_run.h calls it; infer/ranks/stage_ranks.h implements it over a communicator.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/kv_map.h"
#include "core/kv_pages.h"
#include "core/tensor.h"

namespace kvloom {

// K and V of one source that layers of another stage read: every row of the source goes along it once.
struct KvEdge {
  int source;
  int from;  // stage
  int to;
  bool has_key;  // what is read there
  bool has_value;

  bool is_upward() const { return to < from; }
  friend bool operator==(const KvEdge&, const KvEdge&) = default;
};

// Stage s holds layers [boundaries[s], boundaries[s + 1]).
int stage_of(std::span<const int> boundaries, int layer);
// Of all sources, ascending, and of each by stage.
std::vector<KvEdge> kv_edges(const KvMap& map, std::span<const int> boundaries);
// Layers whose K, and whose V, a stage keeps: those that its layers read, and its own that are read upward, since their
// movement tells when rows have settled.
KvSources sources_kept(const KvMap& map, std::span<const int> boundaries, int stage);

enum class StageMessage : std::uint8_t {
  kPieces,        // which rows go up to the next stage, what has settled below, and how rows of wavefronts moved there
  kHidden,        // these rows' hidden states
  kDownward,      // K and V of a source for a stage above it, which reads them in this step
  kUpward,        // K and V of a source for a stage below it, which reads them in later steps
  kSegmentInput,  // hidden states that enter a wavefront, for a stage that guesses K and V from them
  kGuess,         // K and V that a wavefront starts from, for a stage below the source
  kOutcome,       // of the step, from the top stage to the lowest
  kLogits,        // likewise
};
inline constexpr int kStageMessages = 8;

// What a message is about. Of one sender and kind they come in the order of steps and layers.
struct StageKey {
  StageMessage message;
  std::int64_t step;
  int layer;  // source, or the first layer of the segment, or the lowest that the rows go to
  int from;   // stage
  int to;

  friend bool operator==(const StageKey&, const StageKey&) = default;
};

// "K/V of layer 10 for layers below it, of step 3, from stage 2 to stage 0".
std::string describe(const StageKey& key);

// A tensor [rows, columns] of a message; the rows come with it.
struct StagePart {
  std::int64_t columns;
  DType dtype;
};
inline constexpr std::size_t kMostStageParts = 3;

class StageLinks {
 public:
  virtual ~StageLinks() = default;

  virtual std::span<const int> boundaries() const = 0;
  virtual int stage() const = 0;
  int stages() const { return static_cast<int>(boundaries().size()) - 1; }

  // Starts to send tensors [rows, columns], which nobody writes to from now on.
  virtual void send(const StageKey& key, std::vector<Tensor> parts) = 0;
  // The message's tensors. Throws Error naming it when another came in its place, or none in time.
  virtual std::vector<Tensor> receive(const StageKey& key, std::span<const StagePart> parts) = 0;
  // Returns when what was sent has left.
  virtual void finish() = 0;
};

}  // namespace kvloom
