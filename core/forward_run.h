// Carries out the rows of a step (core/step_rows.h) over K and V in pages: decoded tokens, chunks of prompts and
// wavefront passes go through each layer together, once. It decides nothing but which rows of a wavefront have settled.
//
// Every row's result depends on its own sequence alone: products, norms and attention have the same bits for a row
// whatever other rows are there (kernels/packed_linear.h, kernels/ragged_attention.h).
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <span>
#include <vector>

#include "core/forward_rows.h"
#include "core/head.h"
#include "core/inference_model.h"
#include "core/kv_pages.h"
#include "core/kv_store.h"
#include "core/rope_table.h"
#include "core/stage_links.h"
#include "core/step_rows.h"
#include "core/tensor_group.h"
#include "core/wavefront.h"

namespace kvloom {

// What K and V of an iterated segment's sources are before a token's first pass. The fixed point is the same whatever
// the guess; a good one saves passes.
enum class StartingGuess : std::uint8_t {
  kProjection,  // the source's projection of the segment's input
  kZeros,
};

// Which rows of a wavefront settle in a pass.
enum class Settling : std::uint8_t {
  kByTolerance,  // those that have stopped moving, and those that RowRun::forced names
  kForced,       // those that RowRun::forced names, none if it is 0: whole texts in a fixed number of passes
};

struct ForwardOptions {
  // A token of a wavefront settles when the K and V of upward-read sources moved by no more than this in a pass,
  // relative to the largest value of that source among the block's tokens that were computed so far, and so did those
  // of every token of the window before it; 0: when their bits stood still.
  float tolerance = 1e-3f;
  StartingGuess guess = StartingGuess::kProjection;
  Settling settling = Settling::kByTolerance;
  std::int64_t context = 0;       // positions that a sequence may have
  TensorGroup* tensor = nullptr;  // the ranks that share the model's matrices, when its shard is a part: without
                                  // sequence parallelism. It outlives the run. Every rank runs the same steps.
  StageLinks* stages = nullptr;   // the ranks that hold the model's other layers, when its shard has not all. Likewise
  std::int64_t block = 512;       // rows of the blocks that prompts are cut into, at most (RowRun::block_first)
};

class ForwardRun {
 public:
  // Model and pages outlive it.
  ForwardRun(const InferenceModel& model, KvPages& pages, const ForwardOptions& options);

  // Throws Error for rows that do not fit the model. Of stages, what has settled is known on the top one alone.
  StepOutcome run(const StepRows& rows, const PageTables& tables);

  // Puts K and V that stages above made in steps up to this one, counted from 1, into their pages: before the pages are
  // moved, read or used anew.
  void take_upward(std::int64_t step);

  // Rows whose logits the last step brought: on the top stage.
  std::int64_t wanted() const { return wanted_.defined() ? wanted_.size(0) : 0; }
  // Gives `sink` the logits f32 [n, vocab] of every wanted row of the last step, in the order of runs and positions,
  // some rows at a time.
  void logits(const LogitsSink& sink);

  // What layers really computed so far: rows times layers.
  std::int64_t layer_rows() const { return layer_rows_; }

 private:
  // By row; of a part that is not measured, nothing.
  using KvMoves = ByPart<std::vector<KvMovement>>;
  // Rows of pools.
  using KvPlaces = ByPart<std::vector<std::int64_t>>;

  // What a sequence's prompt leaves from one step to the next.
  struct Kept {
    Tensor hidden;  // [rows of a block, hidden], by position in the block; undefined: nothing
    BlockScale scale;
  };
  // One step under way.
  struct Step {
    const StepRows& plan;
    const PageTables& tables;
    std::vector<std::int64_t> first_token;  // by run: of those that begin at layer 0
    std::vector<WavefrontPass> passes;      // by run
    ForwardRows rows;                       // at the layer that is being computed
    StepOutcome outcome;

    const RowRun& run_of(const RowPiece& piece) const { return plan.runs[piece.run]; }
  };

  Step begin(const StepRows& plan, const PageTables& tables);
  void check(const RowRun& run) const;
  void compute(Step& step, int layer);
  // The layer's queries, rotated. Its K and V, where it owns some, go into their pages; fewer rows may go on, of the
  // step and of `normed`.
  Tensor queries_of(Step& step, int layer, Tensor& normed);
  Tensor attend(const Step& step, int layer, const Tensor& query);

  // Which rows a layer computes (core/forward_layer_rows.cc).
  // Runs that end below `layer` leave their hidden states, those that begin with it enter.
  void leave_and_enter(Step& step, int layer);
  void leave(const Step& step, const RowPiece& piece);
  void enter(const Step& step, const RowPiece& piece, Tensor& hidden);
  void embed(const Step& step, Tensor& hidden) const;
  bool narrows(const Step& step, int layer) const;
  void narrow(Step& step, int layer, Tensor& normed);

  // Guesses and settling (core/forward_wavefront.cc).
  // Rows that enter a wavefront: what is read upward of its segment's K and V begins as a guess.
  void guess(Step& step, int layer);
  void guess_sources(const Step& step, LayerRange segment, const ForwardRows& rows);
  void guess_source(const Step& step, int source, const ForwardRows& rows);
  void guess_zeros(const Step& step, int source, const ForwardRows& rows);
  // A block's first pass begins with no largest values.
  void begin_scale(const RowRun& run);
  bool is_measured(const Step& step, KvPart part, int source) const;
  // How rows moved, over the heads of all tensor ranks.
  void join_moves(KvMoves& moves) const;
  void note_moves(Step& step, int source, const KvMoves& moves) const;
  std::int64_t settle(Step& step, const RowPiece& piece);
  bool reads_nothing(const RowRun& run, int layer) const;

  // K and V into pages (core/forward_kv.cc).
  void store_own(Step& step, int layer, const KeyValue& own);
  // What is defined of `values` into the source's pages, where this rank has some, at the rows' places. `moves` (=),
  // where it is asked for, of the parts by which rows of this step settle.
  void store(const Step& step, int source, const ForwardRows& rows, const KeyValue& values, KvMoves* moves = nullptr);
  void put(std::span<const std::int64_t> places, const KvPool& pool, const Tensor& input,
           std::vector<KvMovement>* moves) const;
  // Of the rows in the source's pools of keys and of values, as far as this rank has them.
  KvPlaces places_of(const Step& step, int source, std::span<const RowPiece> pieces) const;
  std::vector<std::int64_t> places_in_group(const Step& step, int group, std::span<const RowPiece> pieces) const;
  std::int64_t kv_columns() const { return pages_.options().kv_heads * model_.config().head_dim; }

  // One stage of several (core/forward_stages.cc).
  struct Due {
    std::int64_t step;
    KvEdge edge;
    KvPlaces places;
  };
  static std::vector<RowPiece> rows_of_source(const Step& step, int source);
  StageKey key_of(StageMessage message, int layer, int from, int to) const;
  int stage_with(int layer) const;
  void share(StageMessage message, int source, const KeyValue& values) const;
  void take(const StageKey& key, const KvEdge& edge, const KvPlaces& places);
  void expect_upward(const Step& step);
  bool guesses_for(LayerRange segment, int stage) const;
  void ask_for_guesses(LayerRange segment, const ForwardRows& rows) const;
  void guess_from_below(Step& step);
  void take_guess(const Step& step, int source, const ForwardRows& rows);
  void receive_rows(Step& step);
  void take_numbers(Step& step, std::span<const float> list) const;
  void pass_on(const Step& step);

  Tensor of_all_ranks(const Tensor& part) const;
  Tensor norm(const Tensor& hidden, const Tensor& gain) const;
  Tensor rotated(Tensor heads, const Tensor& gain, const ForwardRows& rows) const;
  Tensor empty(std::int64_t rows, std::int64_t columns) const;
  void add_product(const Tensor& input, const PackedWeight& weight, Tensor& hidden) const;

  const InferenceModel& model_;
  KvPages& pages_;
  ForwardOptions options_;
  LayerRange layers_;          // of this rank
  std::vector<KvEdge> edges_;  // between stages
  std::deque<Due> due_;        // K and V that stages above have sent, or will send
  std::int64_t steps_ = 0;
  RopeTable rope_;
  std::map<std::int32_t, Kept> kept_;  // by slot
  Tensor wanted_;                      // hidden states [rows, hidden] of the last step, above the last layer
  std::int64_t layer_rows_ = 0;
};

}  // namespace kvloom
