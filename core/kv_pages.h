// K and V in pages (Kwon et al. 2023, arXiv 2309.06180). Pages belong to sources, never to layers: each source has a
// pool of the keys that somebody reads and one of such values. Pools of equal reach form a group: they share page
// numbers, and so page tables.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "core/config.h"
#include "core/tensor.h"
#include "kernels/ragged_attention.h"

namespace kvloom {

// Layers whose keys, and whose values, something is about; ascending.
using KvSources = ByPart<std::vector<int>>;

// Keys and values that somebody reads equally far back.
struct ReachGroup {
  std::int64_t reach;  // in positions; 0: everything
  KvSources sources;

  // Those of either, ascending.
  std::vector<int> layers() const;
  std::int64_t pools() const { return std::ssize(sources.key) + std::ssize(sources.value); }

  friend bool operator==(const ReachGroup&, const ReachGroup&) = default;
};

// The groups of a map, the widest reach first: everything, then windows in descending order.
std::vector<ReachGroup> reach_groups(const KvMap& map);
// The same groups with only those of their keys and values that are among `kept`; a group may have none.
std::vector<ReachGroup> reach_groups(const KvMap& map, const KvSources& kept);

// "f32", "bf16" or "int8". Throws InputError for others.
KvFormat parse_kv_format(const std::string& text);
std::string_view name_of(KvFormat format);
// K and V kept as f32 or bf16 hidden states are. Throws Error for other dtypes.
KvFormat kv_format_of(DType dtype);

// Bytes of K and V of one position, over the pools of a group. `kv_heads` are those that a rank holds.
std::int64_t kv_bytes_per_position(const ReachGroup& group, KvFormat format, std::int64_t kv_heads,
                                   std::int64_t head_dim);
// Bytes of K and V that a sequence of so many positions leaves: of each source no more than its reach.
std::int64_t kv_bytes(const ModelConfig& config, KvFormat format, std::int64_t positions);

// The pages that a sequence of `positions` holds of a group at most: in a windowed one those that a row at the end of
// it can see, with `rows` rows under way.
std::int64_t pages_of_sequence(const ReachGroup& group, std::int64_t page_size, std::int64_t positions,
                               std::int64_t rows);

// Bytes of all the pages that such a sequence holds, of every group.
std::int64_t paged_bytes(const ModelConfig& config, KvFormat format, std::int64_t page_size, std::int64_t positions,
                         std::int64_t rows);
// The same over `groups` of the map.
std::int64_t paged_bytes(const ModelConfig& config, std::span<const ReachGroup> groups, KvFormat format,
                         std::int64_t page_size, std::int64_t positions, std::int64_t rows);

// How many pages each group gets of `bytes`: as many as the same number of sequences of `positions` positions needs in
// every group, and what is left to the widest. Throws InputError when not one such sequence fits: what it takes.
std::vector<std::int64_t> pages_within(const ModelConfig& config, KvFormat format, std::int64_t page_size,
                                       std::int64_t bytes, std::int64_t positions, std::int64_t rows);
// The same over `groups` of the map, one of which has sources.
std::vector<std::int64_t> pages_within(const ModelConfig& config, std::span<const ReachGroup> groups, KvFormat format,
                                       std::int64_t page_size, std::int64_t bytes, std::int64_t positions,
                                       std::int64_t rows);

struct KvPagesOptions {
  KvFormat format = KvFormat::kF32;
  std::int64_t page_size = 32;            // positions; a power of two, 16 or more
  std::int64_t kv_heads = 0;              // held by this rank
  std::vector<std::int64_t> pages;        // by group
  std::vector<std::int64_t> swap_places;  // by group: pages that the host's swap space takes; none: no swapping
  std::optional<KvSources> sources;       // that this rank keeps; nothing: all
};

class KvPages {
 public:
  // Memory is taken at once and, on a CPU, touched when it is used. The allocator outlives the pages.
  KvPages(const ModelConfig& config, const KvPagesOptions& options, Allocator& allocator);

  const KvPagesOptions& options() const { return options_; }
  std::span<const ReachGroup> groups() const { return groups_; }
  // Whether this rank has pages of the layer's keys, or values.
  bool keeps(KvPart part, int source) const { return pools_[part][static_cast<std::size_t>(source)].rows.defined(); }
  // Of the keys, or values, of a layer that owns them.
  int group_of(KvPart part, int source) const { return group_of_[part][static_cast<std::size_t>(source)]; }
  KvPool pool(KvPart part, int source);
  // Of all pools.
  std::int64_t bytes() const;

  // Of every pool of the group: page `to` = page `from`.
  void copy(int group, std::int32_t from, std::int32_t to);
  // The swap space's `place` = the page, and back.
  void swap_out(int group, std::int32_t page, std::int32_t place);
  void swap_in(int group, std::int32_t page, std::int32_t place);

 private:
  struct Pool {
    Tensor rows;    // u8 [pages, bytes of a page]
    Tensor scales;  // u8 likewise, with int8 only
    Tensor swapped_rows;
    Tensor swapped_scales;
  };
  Pool make_pool(int group, Allocator& allocator) const;
  template <typename Visit>
  void each_pool(int group, const Visit& visit);

  KvPagesOptions options_;
  std::int64_t head_dim_;
  std::vector<ReachGroup> groups_;
  ByPart<std::vector<int>> group_of_;  // by layer; -1: the layer owns no such part
  ByPart<std::vector<Pool>> pools_;    // by layer
};

// The page tables of all sequences with pages: [slots, pages_per_sequence] for each group.
class PageTables {
 public:
  PageTables(std::size_t groups, std::int64_t slots, std::int64_t pages_per_sequence);

  // Throws Error for numbers out of range.
  void set(std::int32_t slot, std::int32_t group, std::int32_t index, std::int32_t page);
  // The slot's [pages_per_sequence].
  const std::int32_t* of(std::int32_t slot, int group) const {
    return tables_[static_cast<std::size_t>(group)].data() + slot * pages_per_sequence_;
  }

 private:
  std::int64_t slots_;
  std::int64_t pages_per_sequence_;
  std::vector<std::vector<std::int32_t>> tables_;
};

}  // namespace kvloom
