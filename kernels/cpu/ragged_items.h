// How a ragged attention is cut into items that threads share.
#pragma once

#include <algorithm>
#include <bit>
#include <vector>

#include "kernels/cpu/attention_span.h"
#include "kernels/ragged_attention.h"

namespace kvloom::cpu {

// Keys of a range, from a multiple of it on: a query's softmax is taken over each range for itself, and ranges are
// joined in their order, so that threads may share a query's keys and its sums still have one order.
constexpr std::int64_t kKeyRange = 512;
static_assert(kKeyRange % kKeyBlock == 0);

constexpr std::int64_t element_bytes(KvFormat format) {
  return format == KvFormat::kF32 ? 4 : format == KvFormat::kBF16 ? 2 : 1;
}

// Rows of products, a query's heads each, that an item has at most where it has more than one query.
constexpr std::int64_t kItemRows = 256;

// Queries whose item may have all heads.
constexpr std::int64_t kFewQueries = 4;

// Some queries of one sequence over some of their keys, for some KV heads.
struct RaggedItem {
  std::int64_t sequence;
  std::int64_t first_head;  // KV heads
  std::int64_t last_head;
  std::int64_t first_query;  // of the sequence's rows
  std::int64_t last_query;
  Span keys;                 // what they see of the ranges that are the item's
  float* partial = nullptr;  // where its sums go that others join; null: it writes the output
};

inline Span visible_keys(const RaggedAttention& op, std::int64_t position) {
  const std::int64_t end = std::max<std::int64_t>(0, op.visibility == Visibility::kUpward ? position : position + 1);
  const std::int64_t begin = op.window > 0 ? std::max<std::int64_t>(0, position - op.window + 1) : 0;
  return {std::min(begin, end), end};
}

// The union over positions [first, last): both ends only grow.
inline Span visible_keys(const RaggedAttention& op, std::int64_t first, std::int64_t last) {
  const std::int64_t end = visible_keys(op, last - 1).end;
  return {std::min(visible_keys(op, first).begin, end), end};
}

// Offsets, in elements, of one KV head's rows in the pools, and in their scales.
class PageRows {
 public:
  PageRows(const RaggedAttention& op, const std::int32_t* pages)
      : pages_(pages),
        bits_(std::countr_zero(static_cast<std::uint64_t>(op.page_size))),
        last_of_page_(op.page_size - 1) {}

  // The pool's row of a key.
  std::int64_t row_of(std::int64_t key) const {
    return (static_cast<std::int64_t>(pages_[key >> bits_]) << bits_) + (key & last_of_page_);
  }

 private:
  const std::int32_t* pages_;
  int bits_;
  std::int64_t last_of_page_;
};

// Keys whose weights, and values, share a dword of bf16 in products.
constexpr std::int64_t kPairDistance = 16;
static_assert(kKeyBlock % (2 * kPairDistance) == 0);

// How a state's values lie.
enum class ColumnOrder : std::uint8_t {
  kPlain,
  kEvenOdd,  // of each 32 elements the even ones, then the odd ones
};

// The rows of products that an item has for each of its KV heads: its queries by the heads of a group.
struct ItemRows {
  ItemRows(const RaggedAttention& given, const RaggedItem& given_item)
      : op(given),
        item(given_item),
        sequence(op.sequences[static_cast<std::size_t>(item.sequence)]),
        group(op.heads / op.kv_heads),
        count((item.last_query - item.first_query) * group) {}

  std::int64_t heads() const { return item.last_head - item.first_head; }
  // Of all rows of all heads.
  std::int64_t index(std::int64_t head, std::int64_t row) const { return (head - item.first_head) * count + row; }
  // Of the call.
  std::int64_t token(std::int64_t row) const { return sequence.first_row + item.first_query + row / group; }
  std::int64_t head_of_query(std::int64_t head, std::int64_t row) const { return head * group + row % group; }
  // The element where the row's query begins.
  std::int64_t query_at(std::int64_t head, std::int64_t row) const {
    return token(row) * op.query_stride + head_of_query(head, row) * op.head_dim;
  }
  Span seen(std::int64_t row) const {
    return visible_keys(op, sequence.first_position + item.first_query + row / group);
  }

  const RaggedAttention& op;
  const RaggedItem& item;
  const SequenceRows& sequence;
  std::int64_t group;
  std::int64_t count;
};

// Where a block's keys and values lie in their pools: rows of the first heads, counted in heads from the pool's first.
struct BlockRows {
  const std::int64_t* keys;
  const std::int64_t* values;

  BlockRows from(std::int64_t n) const { return {keys + n, values + n}; }
};

// A block of keys, of all KV heads: those at offsets [begin, end) of the positions from `first` on are read.
struct BlockKeys {
  BlockRows rows;
  std::int64_t first;
  std::int64_t begin;
  std::int64_t end;
  BlockRows next;  // of the block after: next_count of them, from its first read on
  std::int64_t next_count;
};

// What an item keeps for one row and KV head, its state: {reference, 15 unused, sums of weights [16], weighted values
// [padded(head_dim)]}. Weights are e^(score - reference); their sum is that of 16, for keys apart by their position.
constexpr std::int64_t kSumLanes = 16;
constexpr std::int64_t kRowSums = 16;
constexpr std::int64_t kRowValues = kRowSums + kSumLanes;
inline std::int64_t row_state_size(const RaggedAttention& op) { return kRowValues + padded(op.head_dim); }

}  // namespace kvloom::cpu
