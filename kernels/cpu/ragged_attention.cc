#include "kernels/ragged_attention.h"

#include <omp.h>

#include "kernels/cpu/bf16_products.h"
#include "kernels/cpu/element.h"
#include "kernels/cpu/ragged_attention.h"
#include "kernels/cpu/ragged_items.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/turn_dwords.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/ragged_attention.cc"
#include <hwy/foreach_target.h>

#include "kernels/cpu/ragged_block-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvloom::cpu {
namespace HWY_NAMESPACE {
namespace {

// Of each of the item's KV heads.
std::int64_t rows_of(const RaggedAttention& op, const RaggedItem& item) { return ItemRows(op, item).count; }

void attend(const RaggedAttention& op, const RaggedItem& item, const RaggedItem* following, char* scratch) {
  WideningMath math(op);
  RaggedBlock<RowsByHead<WideningMath>>(op, item, following, math, scratch).run();
}

void attend_bf16(const RaggedAttention& op, const Bf16Products& products, const RaggedItem& item,
                 const RaggedItem* following, char* scratch) {
  Bf16Math math(op, products);
  if (products.multiply_turned != nullptr && rows_of(op, item) <= FewRows::kMostRows) {
    RaggedBlock<FewRows>(op, item, following, math, scratch).run();
  } else {
    RaggedBlock<RowsByHead<Bf16Math>>(op, item, following, math, scratch).run();
  }
}

// Of an item of few queries with `heads` KV heads, or of one of many.
std::int64_t scratch_bytes(const RaggedAttention& op, std::int64_t heads) {
  const std::int64_t group = op.heads / op.kv_heads;
  const auto of = [&]<typename Rows>(Rows*) {
    return std::max(RaggedBlock<Rows>::scratch_bytes(op, heads, kFewQueries * group),
                    RaggedBlock<Rows>::scratch_bytes(op, 1, std::max(kItemRows, group)));
  };
  return std::max({of(static_cast<RowsByHead<WideningMath>*>(nullptr)), of(static_cast<RowsByHead<Bf16Math>*>(nullptr)),
                   of(static_cast<FewRows*>(nullptr))});
}

void join_items(const RaggedAttention& op, const Bf16Products* products, const RaggedItem* items, std::int64_t count) {
  join_partials(op, products == nullptr ? WideningMath::column_order() : Bf16Math::column_order_of(op), items, count);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvloom::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvloom::cpu {
namespace {
HWY_EXPORT(attend);
HWY_EXPORT(attend_bf16);
HWY_EXPORT(scratch_bytes);
HWY_EXPORT(join_items);

void check(const RaggedAttention& op) {
  if (op.kv_heads <= 0 || op.heads <= 0 || op.heads % op.kv_heads != 0 || op.head_dim <= 0) {
    fail("ragged attention: {} heads on {} KV heads of {}; right are whole groups", op.heads, op.kv_heads, op.head_dim);
  }
  if (op.page_size < 16 || !std::has_single_bit(static_cast<std::uint64_t>(op.page_size))) {
    fail("ragged attention: page size {}; right is a power of two, 16 or more", op.page_size);
  }
  if (op.dtype != DType::kF32 && op.dtype != DType::kBF16) {
    fail("ragged attention: computes on f32 or bf16, not {}", name_of(op.dtype));
  }
  for (const KvPool& pool : {op.key, op.value}) {
    if (pool.format == KvFormat::kInt8 && pool.scales == nullptr) {
      fail("ragged attention: int8 rows of {} heads of {} need scales", op.kv_heads, op.head_dim);
    }
  }
}

RaggedAttention with_strides(RaggedAttention op) {
  if (op.query_stride == 0) op.query_stride = op.heads * op.head_dim;
  if (op.output_stride == 0) op.output_stride = op.heads * op.head_dim;
  return op;
}

// How a call's work is cut. Few queries read whole rows of keys, of all heads, where threads have enough to do.
struct Cut {
  std::int64_t heads_of_few;
  bool by_range;
};

std::int64_t queries_an_item(const RaggedAttention& op) {
  return std::max<std::int64_t>(1, kItemRows / (op.heads / op.kv_heads));
}

std::int64_t ranges_of(Span keys) {
  return keys.begin == keys.end ? 1 : (keys.end - 1) / kKeyRange - keys.begin / kKeyRange + 1;
}

// Calls visit(sequence, first, last) for each block of queries of each sequence. The last queries see the most: they
// come first.
template <typename Visit>
void for_query_blocks(const RaggedAttention& op, const Visit& visit) {
  const std::int64_t size = queries_an_item(op);
  for (std::int64_t s = 0; s < std::ssize(op.sequences); ++s) {
    const std::int64_t rows = op.sequences[static_cast<std::size_t>(s)].rows;
    for (std::int64_t block = blocks_of(rows, size) - 1; block >= 0; --block) {
      visit(s, block * size, std::min(rows, (block + 1) * size));
    }
  }
}

Span keys_of(const RaggedAttention& op, std::int64_t sequence, std::int64_t first, std::int64_t last) {
  const std::int64_t at = op.sequences[static_cast<std::size_t>(sequence)].first_position;
  return visible_keys(op, at + first, at + last);
}

// Items that keep every thread busy to the end.
std::int64_t enough_items() { return 4 * static_cast<std::int64_t>(omp_get_max_threads()); }

Cut cut_of(const RaggedAttention& op) {
  std::int64_t blocks = 0;
  std::int64_t ranges = 0;
  for_query_blocks(op, [&](std::int64_t s, std::int64_t first, std::int64_t last) {
    const std::int64_t items = last - first <= kFewQueries ? 1 : op.kv_heads;
    blocks += items;
    ranges += items * ranges_of(keys_of(op, s, first, last));
  });
  if (blocks >= enough_items()) return {op.kv_heads, false};
  if (ranges >= enough_items()) return {op.kv_heads, true};
  const std::int64_t threads = omp_get_max_threads();
  return {op.kv_heads % threads == 0 ? op.kv_heads / threads : 1, ranges > blocks};
}

void append_items(const RaggedAttention& op, RaggedItem item, const Cut& cut, std::vector<RaggedItem>& items) {
  const std::int64_t heads = item.last_query - item.first_query <= kFewQueries ? cut.heads_of_few : 1;
  for (item.first_head = 0; item.first_head < op.kv_heads; item.first_head += heads) {
    item.last_head = std::min(op.kv_heads, item.first_head + heads);
    if (!cut.by_range || ranges_of(item.keys) == 1) {
      items.push_back(item);
      continue;
    }
    RaggedItem part = item;
    for (std::int64_t begin = item.keys.begin; begin < item.keys.end; begin = part.keys.end) {
      part.keys = {begin, std::min(item.keys.end, (begin / kKeyRange + 1) * kKeyRange)};
      items.push_back(part);
    }
  }
}

bool is_part(const RaggedAttention& op, const RaggedItem& item) {
  const Span all = keys_of(op, item.sequence, item.first_query, item.last_query);
  return all.begin != item.keys.begin || all.end != item.keys.end;
}

std::int64_t partial_size(const RaggedAttention& op, const RaggedItem& item) {
  const std::int64_t rows = (item.last_query - item.first_query) * (op.heads / op.kv_heads);
  return (item.last_head - item.first_head) * rows * row_state_size(op);
}

// Gives items that are parts a place for their sums.
void place_partials(const RaggedAttention& op, std::vector<RaggedItem>& items) {
  static thread_local Scratch scratch;
  std::int64_t size = 0;
  for (const RaggedItem& item : items) size += is_part(op, item) ? partial_size(op, item) : 0;
  auto* partial = scratch.at_least<float>(static_cast<std::size_t>(size) * sizeof(float));
  for (RaggedItem& item : items) {
    if (!is_part(op, item)) continue;
    item.partial = partial;
    partial += partial_size(op, item);
  }
}

bool worth_threads(const RaggedAttention& op, const std::vector<RaggedItem>& items) {
  std::int64_t products = 0;
  for (const RaggedItem& item : items) {
    products += (item.last_query - item.first_query) * (item.keys.end - item.keys.begin) *
                (item.last_head - item.first_head) * (op.heads / op.kv_heads) * op.head_dim;
  }
  return is_worth_threads(products);
}

// Neighbouring items of the same rows and heads are parts of one softmax.
void join(const RaggedAttention& op, const Bf16Products* products, const std::vector<RaggedItem>& items) {
  const auto join_some = HWY_DYNAMIC_DISPATCH(join_items);
  for (std::size_t first = 0; first < items.size();) {
    std::size_t last = first + 1;
    if (items[first].partial != nullptr) {
      while (last < items.size() && items[last].sequence == items[first].sequence &&
             items[last].first_head == items[first].first_head && items[last].first_query == items[first].first_query) {
        ++last;
      }
      join_some(op, products, &items[first], static_cast<std::int64_t>(last - first));
    }
    first = last;
  }
}

bool goes_by_bf16(const RaggedAttention& op) {
  return op.dtype == DType::kBF16 && op.key.format != KvFormat::kF32 && op.value.format != KvFormat::kF32;
}

}  // namespace

void attend_ragged(const RaggedAttention& given, const Bf16Products* products) {
  check(given);
  const RaggedAttention op = with_strides(given);
  static thread_local std::vector<RaggedItem> items;
  items.clear();
  const Cut cut = cut_of(op);
  for_query_blocks(op, [&](std::int64_t s, std::int64_t first, std::int64_t last) {
    append_items(op, {.sequence = s, .first_query = first, .last_query = last, .keys = keys_of(op, s, first, last)},
                 cut, items);
  });
  if (cut.by_range) place_partials(op, items);
  const std::vector<RaggedItem>& shared = items;  // the calling thread's, for all threads
  const auto attend_item = HWY_DYNAMIC_DISPATCH(attend);
  const auto attend_bf16_item = HWY_DYNAMIC_DISPATCH(attend_bf16);
  const std::int64_t bytes = HWY_DYNAMIC_DISPATCH(scratch_bytes)(op, cut.heads_of_few);
#pragma omp parallel for schedule(dynamic) if (worth_threads(op, shared))
  for (std::int64_t index = 0; index < std::ssize(shared); ++index) {
    static thread_local Scratch scratch;
    const RaggedItem& item = shared[static_cast<std::size_t>(index)];
    const std::int64_t after = index + omp_get_num_threads();
    const RaggedItem* following = after < std::ssize(shared) ? &shared[static_cast<std::size_t>(after)] : nullptr;
    char* memory = scratch.at_least(static_cast<std::size_t>(bytes));
    if (products == nullptr) {
      attend_item(op, item, following, memory);
    } else {
      attend_bf16_item(op, *products, item, following, memory);
    }
  }
  if (cut.by_range) join(op, products, shared);
}

void run(const RaggedAttention& op) {
  const bool by_bf16 = goes_by_bf16(op) && !bf16_products().empty();
  attend_ragged(op, by_bf16 ? &bf16_products().front() : nullptr);
}

}  // namespace kvloom::cpu
#endif
