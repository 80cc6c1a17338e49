#include "core/kv_pages.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <iterator>

namespace kvloom {
namespace {

std::int64_t pages_for(std::int64_t positions, std::int64_t page_size) {
  return (positions + page_size - 1) / page_size;
}

void copy_page(const Tensor& from, std::int32_t source, Tensor& to, std::int32_t target) {
  const std::size_t bytes = static_cast<std::size_t>(from.size(1));
  std::memcpy(static_cast<std::byte*>(to.data()) + static_cast<std::size_t>(target) * bytes,
              static_cast<const std::byte*>(from.data()) + static_cast<std::size_t>(source) * bytes, bytes);
}

bool contains(const std::vector<int>& layers, int layer) { return std::ranges::find(layers, layer) != layers.end(); }

}  // namespace

std::vector<int> ReachGroup::layers() const {
  std::vector<int> all;
  std::ranges::set_union(sources.key, sources.value, std::back_inserter(all));
  return all;
}

std::vector<ReachGroup> reach_groups(const KvMap& map) {
  std::vector<ReachGroup> groups;
  for (const int source : map.kv_layers()) {
    for (const KvPart part : kKvParts) {
      if (!map.owns(part, source)) continue;
      const std::int64_t reach = map.reach(part, source);
      auto group = std::ranges::find(groups, reach, &ReachGroup::reach);
      if (group == groups.end()) group = groups.insert(groups.end(), {reach, {}});
      group->sources[part].push_back(source);
    }
  }
  std::ranges::sort(groups, [](const ReachGroup& a, const ReachGroup& b) {
    return a.reach == 0 || (b.reach != 0 && a.reach > b.reach);
  });
  return groups;
}

std::vector<ReachGroup> reach_groups(const KvMap& map, const KvSources& kept) {
  std::vector<ReachGroup> groups = reach_groups(map);
  for (ReachGroup& group : groups) {
    for (const KvPart part : kKvParts) {
      std::erase_if(group.sources[part], [&](int source) { return !contains(kept[part], source); });
    }
  }
  return groups;
}

KvFormat parse_kv_format(const std::string& text) {
  for (const KvFormat format : {KvFormat::kF32, KvFormat::kBF16, KvFormat::kInt8}) {
    if (text == name_of(format)) return format;
  }
  reject_input("--kv-dtype: '{}'; right are f32, bf16 and int8", text);
}

KvFormat kv_format_of(DType dtype) {
  if (dtype == DType::kF32) return KvFormat::kF32;
  if (dtype == DType::kBF16) return KvFormat::kBF16;
  fail("K and V in {}; right are f32 and bf16", name_of(dtype));
}

std::string_view name_of(KvFormat format) {
  switch (format) {
    case KvFormat::kF32:
      return "f32";
    case KvFormat::kBF16:
      return "bf16";
    case KvFormat::kInt8:
      return "int8";
  }
  return "?";
}

std::int64_t kv_bytes_per_position(const ReachGroup& group, KvFormat format, std::int64_t kv_heads,
                                   std::int64_t head_dim) {
  return group.pools() * kv_row_bytes(format, kv_heads, head_dim);
}

std::int64_t kv_bytes(const ModelConfig& config, KvFormat format, std::int64_t positions) {
  std::int64_t bytes = 0;
  for (const ReachGroup& group : reach_groups(config.kv_map)) {
    const std::int64_t kept = group.reach == 0 ? positions : std::min(positions, group.reach);
    bytes += kept * kv_bytes_per_position(group, format, config.kv_heads, config.head_dim);
  }
  return bytes;
}

std::int64_t pages_of_sequence(const ReachGroup& group, std::int64_t page_size, std::int64_t positions,
                               std::int64_t rows) {
  if (group.reach == 0) return pages_for(positions, page_size);
  // Rows and what they see may begin and end anywhere in a page.
  return std::min(pages_for(positions, page_size), pages_for(group.reach + rows, page_size) + 1);
}

namespace {

std::int64_t page_bytes(const ModelConfig& config, const ReachGroup& group, KvFormat format, std::int64_t page_size) {
  return page_size * kv_bytes_per_position(group, format, config.kv_heads, config.head_dim);
}

}  // namespace

std::int64_t paged_bytes(const ModelConfig& config, std::span<const ReachGroup> groups, KvFormat format,
                         std::int64_t page_size, std::int64_t positions, std::int64_t rows) {
  std::int64_t bytes = 0;
  for (const ReachGroup& group : groups) {
    bytes += pages_of_sequence(group, page_size, positions, rows) * page_bytes(config, group, format, page_size);
  }
  return bytes;
}

std::int64_t paged_bytes(const ModelConfig& config, KvFormat format, std::int64_t page_size, std::int64_t positions,
                         std::int64_t rows) {
  return paged_bytes(config, reach_groups(config.kv_map), format, page_size, positions, rows);
}

std::vector<std::int64_t> pages_within(const ModelConfig& config, std::span<const ReachGroup> groups, KvFormat format,
                                       std::int64_t page_size, std::int64_t bytes, std::int64_t positions,
                                       std::int64_t rows) {
  const std::int64_t bytes_of_one = paged_bytes(config, groups, format, page_size, positions, rows);
  const std::int64_t sequences = bytes / bytes_of_one;
  if (sequences < 1) {
    reject_input("K/V memory: {} bytes; one sequence of {} tokens takes {}", bytes, positions, bytes_of_one);
  }
  std::vector<std::int64_t> pages;
  for (const ReachGroup& group : groups) {
    pages.push_back(sequences * pages_of_sequence(group, page_size, positions, rows));
  }
  const std::int64_t each = page_bytes(config, groups.front(), format, page_size);
  if (each > 0) pages.front() += (bytes - sequences * bytes_of_one) / each;
  return pages;
}

std::vector<std::int64_t> pages_within(const ModelConfig& config, KvFormat format, std::int64_t page_size,
                                       std::int64_t bytes, std::int64_t positions, std::int64_t rows) {
  return pages_within(config, reach_groups(config.kv_map), format, page_size, bytes, positions, rows);
}

KvPages::KvPages(const ModelConfig& config, const KvPagesOptions& options, Allocator& allocator)
    : options_(options), head_dim_(config.head_dim), groups_(reach_groups(config.kv_map)) {
  if (options_.page_size < 16 || !std::has_single_bit(static_cast<std::uint64_t>(options_.page_size))) {
    reject_input("page size {}; right is a power of two, 16 or more", options_.page_size);
  }
  if (options_.pages.size() != groups_.size()) {
    fail("kv pages: {} numbers of pages for {} groups", options_.pages.size(), groups_.size());
  }
  options_.swap_places.resize(groups_.size(), 0);
  for (const KvPart part : kKvParts) {
    group_of_[part].assign(static_cast<std::size_t>(config.layers), -1);
    pools_[part].resize(static_cast<std::size_t>(config.layers));
    for (std::size_t group = 0; group < groups_.size(); ++group) {
      for (const int source : groups_[group].sources[part]) {
        group_of_[part][static_cast<std::size_t>(source)] = static_cast<int>(group);
        if (options_.sources.has_value() && !contains((*options_.sources)[part], source)) continue;
        pools_[part][static_cast<std::size_t>(source)] = make_pool(static_cast<int>(group), allocator);
      }
    }
  }
}

KvPages::Pool KvPages::make_pool(int group, Allocator& allocator) const {
  const std::int64_t pages = options_.pages[static_cast<std::size_t>(group)];
  const std::int64_t places = options_.swap_places[static_cast<std::size_t>(group)];
  const std::int64_t scale_bytes = options_.page_size * options_.kv_heads * 4;
  const bool is_int8 = options_.format == KvFormat::kInt8;
  const std::int64_t row_bytes =
      options_.page_size * kv_row_bytes(options_.format, options_.kv_heads, head_dim_) - (is_int8 ? scale_bytes : 0);
  const auto tensor = [&](std::int64_t count, std::int64_t bytes) {
    return Tensor::empty(allocator, {count, bytes}, DType::kU8);
  };
  Pool pool{
      .rows = tensor(pages, row_bytes), .scales = {}, .swapped_rows = tensor(places, row_bytes), .swapped_scales = {}};
  if (is_int8) {
    pool.scales = tensor(pages, scale_bytes);
    pool.swapped_scales = tensor(places, scale_bytes);
  }
  return pool;
}

KvPool KvPages::pool(KvPart part, int source) {
  Pool& pool = pools_[part][static_cast<std::size_t>(source)];
  if (!pool.rows.defined()) fail("kv pages: there is no {} of layer {} here", name_of(part), source);
  return {.rows = pool.rows.data(),
          .scales = pool.scales.defined() ? static_cast<float*>(pool.scales.data()) : nullptr,
          .format = options_.format};
}

std::int64_t KvPages::bytes() const {
  std::int64_t bytes = 0;
  for (const KvPart part : kKvParts) {
    for (const Pool& pool : pools_[part]) {
      for (const Tensor* stored : {&pool.rows, &pool.scales}) {
        if (stored->defined()) bytes += static_cast<std::int64_t>(stored->bytes());
      }
    }
  }
  return bytes;
}

template <typename Visit>
void KvPages::each_pool(int group, const Visit& visit) {
  for (const KvPart part : kKvParts) {
    for (const int source : groups_[static_cast<std::size_t>(group)].sources[part]) {
      Pool& pool = pools_[part][static_cast<std::size_t>(source)];
      if (!pool.rows.defined()) continue;
      visit(pool.rows, pool.swapped_rows);
      if (pool.scales.defined()) visit(pool.scales, pool.swapped_scales);
    }
  }
}

void KvPages::copy(int group, std::int32_t from, std::int32_t to) {
  each_pool(group, [&](Tensor& pages, Tensor&) { copy_page(pages, from, pages, to); });
}

void KvPages::swap_out(int group, std::int32_t page, std::int32_t place) {
  each_pool(group, [&](const Tensor& pages, Tensor& swapped) { copy_page(pages, page, swapped, place); });
}

void KvPages::swap_in(int group, std::int32_t page, std::int32_t place) {
  each_pool(group, [&](Tensor& pages, const Tensor& swapped) { copy_page(swapped, place, pages, page); });
}

PageTables::PageTables(std::size_t groups, std::int64_t slots, std::int64_t pages_per_sequence)
    : slots_(slots),
      pages_per_sequence_(pages_per_sequence),
      tables_(groups, std::vector<std::int32_t>(static_cast<std::size_t>(slots * pages_per_sequence), 0)) {}

void PageTables::set(std::int32_t slot, std::int32_t group, std::int32_t index, std::int32_t page) {
  if (slot < 0 || slot >= slots_ || index < 0 || index >= pages_per_sequence_ || group < 0 ||
      group >= std::ssize(tables_)) {
    fail("page tables: page {} of slot {} in group {}, out of [{}, {}] for each of {} groups", index, slot, group,
         slots_, pages_per_sequence_, tables_.size());
  }
  tables_[static_cast<std::size_t>(group)][static_cast<std::size_t>(slot * pages_per_sequence_ + index)] = page;
}

}  // namespace kvloom
