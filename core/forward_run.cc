#include "core/forward_run.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <utility>

#include "core/ops.h"

namespace kvloom {
namespace {

constexpr std::int64_t kHeadRows = 64;  // of logits at a time

// Rows [first_row, first_row + rows) of what a step computes now belong to run `run`, from first_position on.
struct Live {
  std::size_t run;
  std::int64_t first_row;
  std::int64_t rows;
  std::int64_t first_position;
};

// Rows of several runs side by side.
struct Rows {
  std::vector<Live> live;
  Tensor hidden;     // [rows, hidden]
  Tensor positions;  // i32 [rows]

  std::int64_t count() const { return hidden.defined() ? hidden.size(0) : 0; }
};

void copy_rows(const Tensor& from, std::int64_t first, Tensor& to, std::int64_t place, std::int64_t rows) {
  if (rows == 0) return;
  Tensor target = to.rows(place, place + rows);
  ops::copy(from.rows(first, first + rows), target);
}

// How a row of one source moved, K and V.
struct Moved {
  std::vector<KvMovement> key;
  std::vector<KvMovement> value;
};

float relative(const KvMovement& movement, float largest) {
  return movement.difference == 0 ? 0.0f : movement.difference / largest;
}

float largest_of(std::span<const KvMovement> rows, float before) {
  for (const KvMovement& row : rows) before = std::max(before, row.value);
  return before;
}

}  // namespace

class ForwardRun::Step {
 public:
  Step(ForwardRun& owner, const StepRows& rows, const PageTables& tables)
      : owner_(owner),
        model_(owner.model_),
        config_(owner.model_.config()),
        map_(config_.kv_map),
        step_(rows),
        tables_(tables),
        row_moves_(rows.runs.size()) {
    std::int64_t tokens = 0;
    for (const RowRun& run : step_.runs) {
      first_token_.push_back(tokens);
      if (run.layers.first == 0) tokens += run.rows;
      check(run);
      outcome_.settled.push_back(run.rows);
      outcome_.residual.push_back(0);
      if (run.kind == RowKind::kDecode) owner_.kept_.erase(run.slot);
    }
    if (tokens != std::ssize(step_.tokens)) fail("step: {} tokens for {} rows", step_.tokens.size(), tokens);
  }

  StepOutcome run() {
    for (int layer = 0; layer < config_.layers; ++layer) {
      leave_and_enter(layer);
      if (rows_.live.empty()) continue;
      compute(layer);
    }
    owner_.wanted_ = rows_.hidden;
    return std::move(outcome_);
  }

 private:
  const RowRun& run_of(const Live& live) const { return step_.runs[live.run]; }
  bool is_read_upward(int source) const { return map_.readers(source).front() < source; }
  Tensor empty(std::int64_t rows, std::int64_t columns, DType dtype) const {
    return Tensor::empty(model_.allocator(), {rows, columns}, dtype);
  }
  Tensor empty(std::int64_t rows, std::int64_t columns) const { return empty(rows, columns, model_.dtype()); }

  void check(const RowRun& run) const {
    const bool fits = run.rows > 0 && run.first_position >= 0 && run.end_position() <= owner_.options_.context &&
                      run.layers.first >= 0 && run.layers.first < run.layers.end && run.layers.end <= config_.layers;
    const bool hands_on = run.layers.first > 0 || run.layers.end < config_.layers;
    if (fits && (!hands_on || (run.first_position >= run.block_first &&
                               run.end_position() <= run.block_first + owner_.options_.block))) {
      return;
    }
    fail(
        "step: {} rows from position {} on by layers [{}, {}) in a block from {} on: a context of {}, {} layers, "
        "blocks of {}",
        run.rows, run.first_position, run.layers.first, run.layers.end, run.block_first, owner_.options_.context,
        config_.layers, owner_.options_.block);
  }

  // What goes on above `layer`'s K and V, of rows [first, first + rows) of a run.
  std::pair<std::int64_t, std::int64_t> wanted(const RowRun& run, std::int64_t first, std::int64_t rows) const {
    const std::int64_t skipped = std::clamp<std::int64_t>(run.wanted_from - first, 0, rows);
    return {first + skipped, rows - skipped};
  }

  // Sets positions and row numbers of `live`, whose rows follow one another.
  Rows arrange(std::vector<Live> live) const {
    Rows rows{.live = std::move(live), .hidden = {}, .positions = {}};
    std::vector<std::int32_t> positions;
    for (Live& part : rows.live) {
      part.first_row = std::ssize(positions);
      for (std::int64_t n = 0; n < part.rows; ++n) {
        positions.push_back(static_cast<std::int32_t>(part.first_position + n));
      }
    }
    rows.hidden = empty(std::ssize(positions), config_.hidden);
    rows.positions = Tensor::of<std::int32_t>(model_.allocator(), {std::ssize(positions)}, positions);
    return rows;
  }

  // Runs that end below `layer` leave their hidden states, and those that begin with it enter.
  void leave_and_enter(int layer) {
    const auto ends = [&](const Live& live) { return run_of(live).layers.end == layer; };
    const auto begins = [&](const RowRun& run) { return run.layers.first == layer; };
    if (std::ranges::none_of(rows_.live, ends) && std::ranges::none_of(step_.runs, begins)) return;
    std::vector<Live> next;
    std::vector<std::int64_t> old_row;  // -1: enters
    auto current = rows_.live.begin();
    for (std::size_t index = 0; index < step_.runs.size(); ++index) {
      const RowRun& run = step_.runs[index];
      if (current != rows_.live.end() && current->run == index) {
        if (ends(*current)) {
          leave(*current);
        } else {
          next.push_back(*current);
          old_row.push_back(current->first_row);
        }
        ++current;
      } else if (begins(run)) {
        const auto [first, rows] = layer > map_.last_kv_layer()
                                       ? wanted(run, run.first_position, run.rows)
                                       : std::pair<std::int64_t, std::int64_t>{run.first_position, run.rows};
        if (rows == 0) continue;
        next.push_back({index, 0, rows, first});
        old_row.push_back(-1);
      }
    }
    Rows entered = arrange(std::move(next));
    for (std::size_t i = 0; i < entered.live.size(); ++i) {
      if (old_row[i] < 0) {
        enter(entered.live[i], entered.hidden);
      } else {
        copy_rows(rows_.hidden, old_row[i], entered.hidden, entered.live[i].first_row, entered.live[i].rows);
      }
    }
    rows_ = std::move(entered);
    guess(layer);
  }

  void leave(const Live& live) {
    const RowRun& run = run_of(live);
    Kept& kept = owner_.kept_[run.slot];
    if (!kept.hidden.defined()) kept.hidden = empty(owner_.options_.block, config_.hidden);
    copy_rows(rows_.hidden, live.first_row, kept.hidden, live.first_position - run.block_first, live.rows);
  }

  void enter(const Live& live, Tensor& hidden) {
    const RowRun& run = run_of(live);
    Tensor place = hidden.rows(live.first_row, live.first_row + live.rows);
    if (run.layers.first == 0) {
      const auto first = static_cast<std::size_t>(first_token_[live.run] + live.first_position - run.first_position);
      const auto tokens = Tensor::of<std::int32_t>(
          model_.allocator(), {live.rows}, std::span(step_.tokens).subspan(first, static_cast<std::size_t>(live.rows)));
      return ops::packed_embedding(tokens, model_.embedding(), place);
    }
    const auto kept = owner_.kept_.find(run.slot);
    if (kept == owner_.kept_.end() || !kept->second.hidden.defined()) {
      fail("step: slot {} has no hidden states at layer {}", run.slot, run.layers.first);
    }
    copy_rows(kept->second.hidden, live.first_position - run.block_first, place, 0, live.rows);
  }

  // Rows of a wavefront that enter a segment: the K and V of its upward-read sources begin as a guess.
  void guess(int layer) {
    std::vector<Live> entering;
    std::vector<std::int64_t> from;
    int end = layer;
    for (const Live& live : rows_.live) {
      const RowRun& run = run_of(live);
      if (run.kind != RowKind::kWavefront || run.layers.first != layer) continue;
      forget_block(run);
      if (run.entering == 0) continue;
      const std::int64_t before = run.rows - run.entering;
      entering.push_back({live.run, 0, run.entering, live.first_position + before});
      from.push_back(live.first_row + before);
      end = run.layers.end;
    }
    if (entering.empty()) return;
    Rows rows = arrange(std::move(entering));
    for (std::size_t i = 0; i < rows.live.size(); ++i) {
      copy_rows(rows_.hidden, from[i], rows.hidden, rows.live[i].first_row, rows.live[i].rows);
    }
    for (int source = layer; source < end; ++source) {
      if (!map_.is_kv_layer(source) || !is_read_upward(source)) continue;
      if (owner_.options_.guess == StartingGuess::kProjection) {
        const Tensor normed = norm(rows.hidden, model_.layer(source).attention_norm);
        put_key_value(source, rows, normed, nullptr);
      } else {
        const std::int64_t columns = model_.layer(source).key.outputs();
        const Tensor zeros = Tensor::zeros(model_.allocator(), {rows.count(), columns}, model_.dtype());
        store(source, rows, zeros, zeros, nullptr);
      }
    }
  }

  // At a block's first pass of a segment.
  void forget_block(const RowRun& run) {
    if (run.first_position != run.block_first || run.entering != run.rows) return;
    auto& largest = owner_.kept_[run.slot].largest;
    std::erase_if(largest,
                  [&](const auto& entry) { return entry.first >= run.layers.first && entry.first < run.layers.end; });
  }

  Tensor norm(const Tensor& hidden, const Tensor& gain) const {
    Tensor result = Tensor::empty(model_.allocator(), hidden.shape(), hidden.dtype());
    Tensor no_scale;
    ops::rms_norm(hidden, gain, config_.norm_epsilon, result, no_scale);
    return result;
  }

  // Norm of heads where there is one, and rotation: of queries and keys.
  Tensor turned(Tensor heads, const Tensor& gain, const Rows& rows) const {
    if (gain.defined()) heads = norm(heads, gain);
    ops::rope(heads, owner_.rope_.cosine, owner_.rope_.sine, {.positions = 1, .starts = &rows.positions},
              Rotation::kForward);
    return heads;
  }

  // K and V of `rows` into the source's pages, from its normed input. `moved` (=) where it is given.
  void put_key_value(int source, const Rows& rows, const Tensor& normed, Moved* moved) {
    const InferenceLayer& layer = model_.layer(source);
    Tensor key = empty(rows.count(), layer.key.outputs());
    Tensor value = empty(rows.count(), layer.value.outputs());
    const std::array<ops::PackedProduct, 2> products = {ops::PackedProduct{layer.key, key, layer.key_bias},
                                                        ops::PackedProduct{layer.value, value, layer.value_bias}};
    ops::packed_linear(normed, products);
    store(source, rows, turned(std::move(key), layer.key_norm, rows), value, moved);
  }

  std::vector<std::int64_t> places_of(int source, const Rows& rows) const {
    const int group = owner_.pages_.group_of(source);
    const std::int64_t page_size = owner_.pages_.options().page_size;
    std::vector<std::int64_t> places;
    for (const Live& live : rows.live) {
      const std::int32_t* pages = tables_.of(run_of(live).slot, group);
      for (std::int64_t position = live.first_position; position < live.first_position + live.rows; ++position) {
        places.push_back(pages[position / page_size] * page_size + position % page_size);
      }
    }
    return places;
  }

  void store(int source, const Rows& rows, const Tensor& key, const Tensor& value, Moved* moved) {
    const std::vector<std::int64_t> places = places_of(source, rows);
    const auto put = [&](const Tensor& input, const KvPool& pool, std::vector<KvMovement>* movement) {
      if (movement != nullptr) movement->resize(places.size());
      cpu::run(StoreKvRows{.input = input.data(),
                           .dtype = input.dtype(),
                           .pool = pool,
                           .rows = rows.count(),
                           .kv_heads = input.size(1) / config_.head_dim,
                           .head_dim = config_.head_dim,
                           .places = places.data(),
                           .movement = movement == nullptr ? nullptr : movement->data()});
    };
    put(key, owner_.pages_.key(source), moved == nullptr ? nullptr : &moved->key);
    put(value, owner_.pages_.value(source), moved == nullptr ? nullptr : &moved->value);
  }

  // The K and V of a wavefront's rows have been written over those of the pass before.
  void note_moves(int source, const Moved& moved) {
    for (const Live& live : rows_.live) {
      const RowRun& run = run_of(live);
      if (run.kind != RowKind::kWavefront || source < run.layers.first || source >= run.layers.end) continue;
      const auto first = static_cast<std::size_t>(live.first_row);
      const auto key = std::span(moved.key).subspan(first, static_cast<std::size_t>(live.rows));
      const auto value = std::span(moved.value).subspan(first, static_cast<std::size_t>(live.rows));
      const Largest settled = owner_.kept_[run.slot].largest[source];
      const Largest now{largest_of(key, settled.key), largest_of(value, settled.value)};
      std::vector<float>& moves = row_moves_[live.run].of_row;
      moves.resize(key.size(), 0.0f);
      for (std::size_t n = 0; n < key.size(); ++n) {
        moves[n] = std::max({moves[n], relative(key[n], now.key), relative(value[n], now.value)});
      }
      row_moves_[live.run].by_source.emplace_back(source,
                                                  Moved{{key.begin(), key.end()}, {value.begin(), value.end()}});
    }
  }

  // How many of a wavefront's first rows settle. A row behind rows that all stood still has read what is final; so does
  // the first one.
  std::int64_t settle(const Live& live) {
    const RowRun& run = run_of(live);
    const RowMoves& moves = row_moves_[live.run];
    std::int64_t settled = 0;
    while (settled < live.rows && moves.of_row[static_cast<std::size_t>(settled)] <= owner_.options_.tolerance)
      ++settled;
    settled = std::min(settled + 1, live.rows);
    outcome_.settled[live.run] = static_cast<std::int32_t>(settled);
    settled = std::max<std::int64_t>(settled, run.forced);
    for (const auto& [source, moved] : moves.by_source) {
      Largest& largest = owner_.kept_[run.slot].largest[source];
      largest.key = largest_of(std::span(moved.key).first(static_cast<std::size_t>(settled)), largest.key);
      largest.value = largest_of(std::span(moved.value).first(static_cast<std::size_t>(settled)), largest.value);
    }
    outcome_.residual[live.run] = *std::max_element(moves.of_row.begin(), moves.of_row.begin() + settled);
    return settled;
  }

  bool is_top_of_wavefront(const RowRun& run, int layer) const {
    return run.kind == RowKind::kWavefront && run.layers.end == layer + 1;
  }

  // Whether only some rows go on above the K and V of `layer`.
  bool narrows(int layer) const {
    return std::ranges::any_of(rows_.live, [&](const Live& live) {
      const RowRun& run = run_of(live);
      return is_top_of_wavefront(run, layer) ||
             (layer == map_.last_kv_layer() && live.first_position < run.wanted_from);
    });
  }

  // Leaves of rows_ and `normed` those that go on.
  void narrow(int layer, Tensor& normed) {
    std::vector<Live> next;
    std::vector<std::int64_t> from;
    for (const Live& live : rows_.live) {
      const RowRun& run = run_of(live);
      std::int64_t first = live.first_position;
      std::int64_t rows = is_top_of_wavefront(run, layer) ? settle(live) : live.rows;
      if (layer >= map_.last_kv_layer()) std::tie(first, rows) = wanted(run, first, rows);
      if (rows == 0) continue;
      next.push_back({live.run, 0, rows, first});
      from.push_back(live.first_row + first - live.first_position);
    }
    Rows rows = arrange(std::move(next));
    Tensor kept_normed = empty(rows.count(), config_.hidden);
    for (std::size_t i = 0; i < from.size(); ++i) {
      copy_rows(rows_.hidden, from[i], rows.hidden, rows.live[i].first_row, rows.live[i].rows);
      copy_rows(normed, from[i], kept_normed, rows.live[i].first_row, rows.live[i].rows);
    }
    rows_ = std::move(rows);
    normed = std::move(kept_normed);
  }

  // The layer's queries, rotated. Its K and V, where it has some, go into their pages; rows_ and `normed` may get
  // fewer.
  Tensor queries_of(int index, Tensor& normed) {
    const InferenceLayer& layer = model_.layer(index);
    const bool is_source = map_.is_kv_layer(index);
    const bool measures = is_source && is_read_upward(index) && std::ranges::any_of(rows_.live, [&](const Live& live) {
                            return run_of(live).kind == RowKind::kWavefront;
                          });
    if (!is_source || narrows(index) || measures) {
      Moved moved;
      if (is_source) put_key_value(index, rows_, normed, measures ? &moved : nullptr);
      if (measures) note_moves(index, moved);
      if (is_source && narrows(index)) narrow(index, normed);
      if (rows_.live.empty()) return {};
      Tensor query = empty(rows_.count(), layer.query.outputs());
      const ops::PackedProduct product{layer.query, query, layer.query_bias};
      ops::packed_linear(normed, std::span(&product, 1));
      return turned(std::move(query), layer.query_norm, rows_);
    }
    Tensor query = empty(rows_.count(), layer.query.outputs());
    Tensor key = empty(rows_.count(), layer.key.outputs());
    Tensor value = empty(rows_.count(), layer.value.outputs());
    const std::array<ops::PackedProduct, 3> products = {ops::PackedProduct{layer.query, query, layer.query_bias},
                                                        ops::PackedProduct{layer.key, key, layer.key_bias},
                                                        ops::PackedProduct{layer.value, value, layer.value_bias}};
    ops::packed_linear(normed, products);
    store(index, rows_, turned(std::move(key), layer.key_norm, rows_), value, nullptr);
    return turned(std::move(query), layer.query_norm, rows_);
  }

  Tensor attend(int layer, const Tensor& query) {
    const int source = map_.source(layer);
    const int group = owner_.pages_.group_of(source);
    std::vector<SequenceRows> sequences;
    for (const Live& live : rows_.live) {
      sequences.push_back({.first_row = live.first_row,
                           .rows = live.rows,
                           .first_position = live.first_position,
                           .pages = tables_.of(run_of(live).slot, group)});
    }
    Tensor output = empty(query.size(0), query.size(1));
    cpu::run(RaggedAttention{.sequences = sequences,
                             .query = query.data(),
                             .key = owner_.pages_.key(source),
                             .value = owner_.pages_.value(source),
                             .output = output.data(),
                             .heads = query.size(1) / config_.head_dim,
                             .kv_heads = owner_.pages_.options().kv_heads,
                             .head_dim = config_.head_dim,
                             .page_size = owner_.pages_.options().page_size,
                             .visibility = map_.visibility(layer),
                             .window = map_.window(layer),
                             .scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim)),
                             .dtype = model_.dtype()});
    return output;
  }

  // hidden += input weight^T.
  void add_product(const Tensor& input, const PackedWeight& weight) {
    const ops::PackedProduct product{weight, rows_.hidden, {}, rows_.hidden};
    ops::packed_linear(input, std::span(&product, 1));
  }

  void compute(int index) {
    const InferenceLayer& layer = model_.layer(index);
    Tensor normed = norm(rows_.hidden, layer.attention_norm);
    const Tensor query = queries_of(index, normed);
    if (rows_.live.empty()) return;
    owner_.layer_rows_ += rows_.count();
    add_product(attend(index, query), layer.output);
    normed = norm(rows_.hidden, layer.ffn_norm);
    Tensor gate_up = empty(rows_.count(), layer.gate_up.outputs());
    const ops::PackedProduct product{layer.gate_up, gate_up};
    ops::packed_linear(normed, std::span(&product, 1));
    Tensor activation = empty(rows_.count(), layer.down.shape().inputs);
    ops::swiglu(gate_up, activation);
    add_product(activation, layer.down);
  }

  // How a wavefront's rows moved in this pass: all sources together, relative to their largest values, and each.
  struct RowMoves {
    std::vector<float> of_row;
    std::vector<std::pair<int, Moved>> by_source;
  };

  ForwardRun& owner_;
  const InferenceModel& model_;
  const ModelConfig& config_;
  const KvMap& map_;
  const StepRows& step_;
  const PageTables& tables_;
  std::vector<std::int64_t> first_token_;  // by run
  std::vector<RowMoves> row_moves_;        // by run
  Rows rows_;
  StepOutcome outcome_;
};

ForwardRun::ForwardRun(const InferenceModel& model, KvPages& pages, const ForwardOptions& options)
    : model_(model),
      pages_(pages),
      options_(options),
      rope_(make_rope_table(model.config(), options.context, model.allocator())) {}

ForwardRun::~ForwardRun() = default;

StepOutcome ForwardRun::run(const StepRows& rows, const PageTables& tables) { return Step(*this, rows, tables).run(); }

void ForwardRun::logits(const LogitsSink& sink) {
  if (!wanted_.defined()) return;
  for (std::int64_t first = 0; first < wanted_.size(0); first += kHeadRows) {
    const std::int64_t rows = std::min(kHeadRows, wanted_.size(0) - first);
    const Tensor hidden = wanted_.rows(first, first + rows);
    Tensor normed = Tensor::empty(model_.allocator(), hidden.shape(), hidden.dtype());
    Tensor no_scale;
    ops::rms_norm(hidden, model_.final_norm(), model_.config().norm_epsilon, normed, no_scale);
    Tensor logits = Tensor::empty(model_.allocator(), {rows, model_.head().outputs()}, DType::kF32);
    const ops::PackedProduct product{model_.head(), logits};
    ops::packed_linear(normed, std::span(&product, 1));
    sink(first, logits);
  }
}

}  // namespace kvloom
