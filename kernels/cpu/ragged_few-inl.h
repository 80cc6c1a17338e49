// Few rows of a ragged attention over a block of keys, all KV heads of the item at once: a row has a lane of its own in
// vectors, so that its softmax takes nothing across lanes, and keys are multiplied where they lie in their pool.
// Gives the bits of RowsByHead<Bf16Math>. Included once for every instruction set.
#if defined(KVLOOM_RAGGED_FEW_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef KVLOOM_RAGGED_FEW_INL
#undef KVLOOM_RAGGED_FEW_INL
#else
#define KVLOOM_RAGGED_FEW_INL
#endif

#include <array>

#include "kernels/cpu/ragged_bf16-inl.h"
#include "kernels/cpu/ragged_items.h"
#include "kernels/cpu/ragged_softmax-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvloom::cpu {
namespace HWY_NAMESPACE {
namespace {

class FewRows {
 public:
  using Math = Bf16Math;

  // Rows of a KV head, at most: the columns of a tile.
  static constexpr std::int64_t kMostRows = 16;

  FewRows(const ItemRows& rows, Math& math, char* scratch)
      : rows_(rows),
        math_(math),
        // Lanes beyond the rows' have scores of zero that nobody looks at.
        lanes_(padded(rows.heads() * rows.count)),
        scores_(reinterpret_cast<float*>(scratch)),
        key_factors_(scores_ + kKeyBlock * lanes_),
        value_factors_(key_factors_ + kKeyBlock * lanes_),
        pairs_(reinterpret_cast<std::uint32_t*>(value_factors_ + kKeyBlock * lanes_)),
        sums_(reinterpret_cast<float*>(pairs_ + kKeyBlock / 2 * lanes_)),
        references_(sums_ + kSumLanes * lanes_),
        kept_(references_ + lanes_),
        begins_(kept_ + lanes_),
        ends_(begins_ + lanes_),
        totals_(ends_ + lanes_),
        weights_(reinterpret_cast<BFloat16*>(totals_ + lanes_ * math.columns())),
        queries_(weights_ + kKeyBlock * lanes_),
        keys_(queries_ + rows.heads() * math.inner() * kMostRows),
        values_(reinterpret_cast<char*>(keys_ + kKeyBlock * math.inner())) {
    std::fill(scores_, scores_ + 3 * kKeyBlock * lanes_, 0.0f);  // factors too
    for (std::int64_t head = rows.item.first_head; head < rows.item.last_head; ++head) load_queries(head);
  }

  static std::int64_t scratch_bytes(const RaggedAttention& op, std::int64_t heads, std::int64_t rows) {
    const std::int64_t lanes = padded(heads * rows);
    const std::int64_t inner = round_up_to(op.head_dim, Math::kLeftMultiple);
    const std::int64_t floats = (3 * kKeyBlock + kKeyBlock / 2 + kSumLanes + 4 + padded(op.head_dim)) * lanes;
    const std::int64_t halves = kKeyBlock * lanes + heads * inner * kMostRows + kKeyBlock * inner;
    return floats * 4 + halves * 2 + 2 * kKeyBlock * padded(op.head_dim) * 2;
  }

  void begin_range(float* states) {
    states_ = states;
    std::fill(references_, references_ + lanes_, kMinusInfinity);
    std::fill(sums_, sums_ + kSumLanes * lanes_, 0.0f);
    std::fill(totals_, totals_ + lanes_ * math_.columns(), 0.0f);
  }

  void absorb(const BlockKeys& keys) {
    const std::int64_t steps = rows_.heads() * (kStepsOfScores + FetchRows::kStepsOfPacking) + kSumLanes;
    FetchRows fetch(rows_.op, keys.next, keys.next_count, rows_.item.first_head, rows_.heads(), steps);
    for_heads([&](std::int64_t head) {
      for (std::int64_t n = 0; n < kStepsOfScores; ++n) fetch.step();
      score({rows_.op, keys.rows, head, keys.first, keys.begin, keys.end});
    });
    take_softmax(keys, fetch);
    // A head's values are packed before those of the head before it are multiplied: what is written reaches the cache
    // before tiles are read from there.
    pack(keys, rows_.item.first_head, fetch);
    for_heads([&](std::int64_t head) {
      if (head + 1 < rows_.item.last_head) pack(keys, head + 1, fetch);
      const std::int64_t lane = rows_.index(head, 0);
      math_.add_values(weights_ + lane * kKeyBlock, rows_.count, values_of(head),
                       {totals_ + lane * math_.columns(), math_.columns()});
    });
  }

  void end_range() {
    const std::int64_t size = row_state_size(rows_.op);
    for (std::int64_t lane = 0; lane < rows_.heads() * rows_.count; ++lane) {
      float* state = states_ + lane * size;
      state[0] = references_[lane];
      for (std::int64_t n = 0; n < kSumLanes; ++n) state[kRowSums + n] = sums_[n * lanes_ + lane];
      std::copy_n(totals_ + lane * math_.columns(), math_.columns(), state + kRowValues);
    }
  }

 private:
  static constexpr std::int64_t kStepsOfScores = 2;  // of a head, of what a block fetches

  template <typename Visit>
  HWY_INLINE void for_heads(const Visit& visit) const {
    for (std::int64_t head = rows_.item.first_head; head < rows_.item.last_head; ++head) visit(head);
  }

  BFloat16* queries_of(std::int64_t head) const {
    return queries_ + (head - rows_.item.first_head) * math_.inner() * kMostRows;
  }

  char* values_of(std::int64_t head) const {
    return values_ + (head - rows_.item.first_head) % 2 * (kKeyBlock * math_.columns() * 2);
  }
  void pack(const BlockKeys& keys, std::int64_t head, FetchRows& fetch) const {
    math_.pack_values({rows_.op, keys.rows, head, keys.first, keys.begin, keys.end}, values_of(head), fetch);
  }

  // A head's queries as a right operand [inner / 2][kMostRows][2].
  void load_queries(std::int64_t head) {
    BFloat16* to = queries_of(head);
    for (std::int64_t row = 0; row < rows_.count; ++row) {
      math_.load_query(rows_.op, rows_.query_at(head, row), keys_);
      for (std::int64_t i = 0; i < math_.inner(); ++i) to[(i / 2 * kMostRows + row) * 2 + i % 2] = keys_[i];
    }
  }

  // Scores [kKeyBlock, lanes] (=) of a head's rows, where sixteen keys have some that are read.
  void score(const KeyBlock& block) {
    const RaggedAttention& op = rows_.op;
    const bool in_place = op.key.format == KvFormat::kBF16 && op.head_dim == math_.inner();
    std::array<const BFloat16*, kKeyBlock / 16> keys{};
    for (std::int64_t tile = 0; tile < std::ssize(keys); ++tile) {
      const std::int64_t begin = std::max(block.begin, tile * 16);
      if (begin >= std::min(block.end, tile * 16 + 16)) continue;
      keys[static_cast<std::size_t>(tile)] = in_place ? first_of_tile(block, begin) : keys_ + tile * 16 * math_.inner();
    }
    if (!in_place) {
      for (std::int64_t j = block.begin; j < block.end; ++j) math_.copy_key(block, j, keys_ + j * math_.inner());
    }
    const std::int64_t lane = rows_.index(block.kv_head, 0);
    math_.products().multiply_turned({.keys = keys,
                                      .key_stride = in_place ? op.kv_heads * op.head_dim : math_.inner(),
                                      .queries = queries_of(block.kv_head),
                                      .query_count = rows_.count,
                                      .inner = math_.inner(),
                                      .c = scores_ + lane,
                                      .c_stride = lanes_},
                                     math_.state());
    if (op.key.format == KvFormat::kInt8)
      spread_factors(block, op.key, block.rows.keys, op.scale * kLog2E, key_factors_);
    if (op.value.format == KvFormat::kInt8) spread_factors(block, op.value, block.rows.values, 1.0f, value_factors_);
  }

  // A page has whole sixteens of keys, one row after another.
  static const BFloat16* first_of_tile(const KeyBlock& block, std::int64_t j) {
    const std::int64_t row = block.rows.keys[j] - j % 16 * block.op.kv_heads + block.kv_head;
    return static_cast<const BFloat16*>(block.op.key.rows) + row * block.op.head_dim;
  }

  // to [kKeyBlock, lanes] (=) at the head's lanes.
  void spread_factors(const KeyBlock& block, const KvPool& pool, const std::int64_t* rows, float factor,
                      float* to) const {
    const std::int64_t lane = rows_.index(block.kv_head, 0);
    for (std::int64_t j = block.begin; j < block.end; ++j) {
      std::fill_n(to + j * lanes_ + lane, rows_.count, factor * pool.scales[rows[j] + block.kv_head]);
    }
  }

  // What each lane sees of the block; whether that is all of it.
  bool find_spans(std::int64_t first) {
    bool whole = true;
    for (std::int64_t row = 0; row < rows_.count; row += rows_.group) {
      const Span span = within_block(rows_.seen(row), first, kKeyBlock);
      whole = whole && span.begin == 0 && span.end == kKeyBlock;
      for_heads([&](std::int64_t head) {
        const std::int64_t lane = rows_.index(head, row);
        std::fill_n(begins_ + lane, rows_.group, static_cast<float>(span.begin));
        std::fill_n(ends_ + lane, rows_.group, static_cast<float>(span.end));
      });
    }
    const std::int64_t lanes = rows_.heads() * rows_.count;
    std::fill(begins_ + lanes, begins_ + lanes_, 0.0f);
    std::fill(ends_ + lanes, ends_ + lanes_, 0.0f);
    return whole;
  }

  void take_softmax(const BlockKeys& keys, FetchRows& fetch) {
    const bool whole = find_spans(keys.first);
    bool moved = false;
    for (std::int64_t v = 0; v < lanes_; v += lanes()) {
      moved = move_references(v, whole ? largest_scores<true>(v) : largest_scores<false>(v)) || moved;
    }
    if (moved) rescale_totals();
    for (std::int64_t v = 0; v < lanes_; v += lanes()) {
      whole ? weigh<true>(v, fetch) : weigh<false>(v, fetch);
    }
    for (std::int64_t v = 0; v < lanes_; v += 16) turn_weights(v);
  }

  template <bool kWhole>
  HWY_INLINE auto counts(std::int64_t v, std::int64_t j) const {
    const Vector offset = fill(static_cast<float>(j));
    return hn::And(hn::Ge(offset, load_vector(begins_ + v)), hn::Lt(offset, load_vector(ends_ + v)));
  }

  HWY_INLINE Vector key_factor(std::int64_t v, std::int64_t j) const {
    if (rows_.op.key.format == KvFormat::kInt8) return load_vector(key_factors_ + j * lanes_ + v);
    return fill(rows_.op.scale * kLog2E);
  }

  // Scores (=) times their factors; the largest of each lane.
  template <bool kWhole>
  HWY_INLINE Vector largest_scores(std::int64_t v) {
    Vector most[4] = {fill(kMinusInfinity), fill(kMinusInfinity), fill(kMinusInfinity), fill(kMinusInfinity)};
    for (std::int64_t j = 0; j < kKeyBlock; j += 4) {
      for (std::int64_t n = 0; n < 4; ++n) {
        float* score = scores_ + (j + n) * lanes_ + v;
        Vector x = hn::Mul(load_vector(score), key_factor(v, j + n));
        if constexpr (!kWhole) x = hn::IfThenElse(counts<kWhole>(v, j + n), x, fill(kMinusInfinity));
        store_vector(x, score);
        most[n] = hn::Max(most[n], x);
      }
    }
    return hn::Max(hn::Max(most[0], most[1]), hn::Max(most[2], most[3]));
  }

  // As move_reference moves one; whether any did.
  HWY_INLINE bool move_references(std::int64_t v, Vector most) {
    const Floats d;
    const Vector old = load_vector(references_ + v);
    const auto moves = hn::Gt(most, hn::Add(old, fill(kSlack)));
    const Vector reference = hn::IfThenElse(moves, hn::Max(old, most), old);
    const Vector kept = hn::IfThenElse(moves, kept_of<BFloat16>(old, reference), fill(1.0f));
    store_vector(kept, kept_ + v);
    if (hn::AllFalse(d, moves)) return false;
    store_vector(reference, references_ + v);
    for (std::int64_t n = 0; n < kSumLanes; ++n) {
      float* sum = sums_ + n * lanes_ + v;
      store_vector(hn::Mul(load_vector(sum), kept), sum);
    }
    return true;
  }

  void rescale_totals() {
    for (std::int64_t lane = 0; lane < rows_.heads() * rows_.count; ++lane) {
      if (kept_[lane] == 1.0f) continue;
      multiply_row(totals_ + lane * math_.columns(), math_.columns(), kept_[lane]);
    }
  }

  template <bool kWhole>
  HWY_INLINE Vector weigh_key(std::int64_t v, std::int64_t j, Vector reference, Vector& sum) const {
    Vector weight = weight_of(hn::Sub(load_vector(scores_ + j * lanes_ + v), reference), BFloat16());
    if constexpr (!kWhole) weight = hn::IfThenElseZero(counts<kWhole>(v, j), weight);
    sum = hn::Add(sum, weight);
    if (rows_.op.value.format == KvFormat::kInt8) {
      weight = hn::Mul(weight, load_vector(value_factors_ + j * lanes_ + v));
    }
    return weight;
  }

  // pairs [kKeyBlock / 2, lanes] (=) of weights.
  template <bool kWhole>
  HWY_INLINE void weigh(std::int64_t v, FetchRows& fetch) {
    static_assert(kSumLanes == kPairDistance);
    const hn::RebindToUnsigned<Floats> words;
    const Vector reference = load_vector(references_ + v);
    for (std::int64_t n = 0; n < kSumLanes; ++n) {
      if (v == 0) fetch.step();
      Vector sum = load_vector(sums_ + n * lanes_ + v);
      for (std::int64_t row = 0; row < kKeyBlock / 2; row += kPairDistance) {
        const Vector first = weigh_key<kWhole>(v, 2 * row + n, reference, sum);
        const Vector second = weigh_key<kWhole>(v, 2 * row + n + kPairDistance, reference, sum);
        hn::StoreU(pair_weights(first, second), words, pairs_ + (row + n) * lanes_ + v);
      }
      store_vector(sum, sums_ + n * lanes_ + v);
    }
  }

  // weights [lanes, kKeyBlock] (=) of 16 lanes, as store_weights has them.
  void turn_weights(std::int64_t lane) {
    const std::uint32_t* from[kPairDistance];
    for (std::int64_t first = 0; first < kKeyBlock / 2; first += kPairDistance) {
      for (std::int64_t n = 0; n < kPairDistance; ++n) from[n] = pairs_ + (first + n) * lanes_ + lane;
      auto* to = reinterpret_cast<std::uint32_t*>(weights_ + lane * kKeyBlock);
      turn_sixteen(from, 16, to + first, kKeyBlock / 2);
    }
  }

  const ItemRows& rows_;
  Math& math_;
  std::int64_t lanes_;  // one for each row of each head, head by head
  float* states_ = nullptr;
  float* scores_;         // [kKeyBlock, lanes]
  float* key_factors_;    // [kKeyBlock, lanes], with int8 only
  float* value_factors_;  // [kKeyBlock, lanes], with int8 only
  std::uint32_t* pairs_;  // [kKeyBlock / 2, lanes]
  float* sums_;           // [kSumLanes, lanes]
  float* references_;     // [lanes]
  float* kept_;           // [lanes]
  float* begins_;         // [lanes]
  float* ends_;           // [lanes]
  float* totals_;         // [lanes, columns]
  BFloat16* weights_;     // [lanes, kKeyBlock]
  BFloat16* queries_;     // [heads, inner / 2, kMostRows, 2]
  BFloat16* keys_;        // [kKeyBlock, inner], where they cannot be multiplied in place
  char* values_;          // of two heads, packed
};

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvloom::cpu
HWY_AFTER_NAMESPACE();

#endif
