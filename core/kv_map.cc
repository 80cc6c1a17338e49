#include "core/kv_map.h"

#include <algorithm>
#include <utility>

#include "kernels/error.h"

namespace kvloom {

KvMap KvMap::from_reads(std::vector<KvReads> reads, Diagonal diagonal) {
  const auto layers = static_cast<int>(reads.size());
  if (layers < 1) reject_input("kv map: no layers; right is 1 or more");
  KvMap map;
  map.diagonal_ = diagonal;
  for (const KvPart part : kKvParts) map.readers_[part].resize(reads.size());
  for (int layer = 0; layer < layers; ++layer) {
    const KvReads& read = reads[static_cast<std::size_t>(layer)];
    for (const KvPart part : kKvParts) {
      const int source = read.source[part];
      if (source < 0 || source >= layers) {
        reject_input("kv map: layer {} reads layer {}; right are 0 to {}", layer, source, layers - 1);
      }
      map.readers_[part][static_cast<std::size_t>(source)].push_back(layer);
    }
    if (read.window < 0) {
      reject_input("kv map: layer {} has window {}; right is a positive one, or 0 for none", layer, read.window);
    }
  }
  map.reads_ = std::move(reads);
  for (int layer = 0; layer < layers; ++layer) {
    if (map.is_kv_layer(layer)) map.kv_layers_.push_back(layer);
  }
  return map;
}

KvMap KvMap::with_windows(const std::vector<std::int64_t>& windows) const {
  if (windows.size() != reads_.size()) reject_input("kv map: {} windows for {} layers", windows.size(), layers());
  std::vector<KvReads> reads = reads_;
  for (std::size_t layer = 0; layer < reads.size(); ++layer) reads[layer].window = windows[layer];
  return from_reads(std::move(reads), diagonal_);
}

std::int64_t KvMap::reach(KvPart part, int source) const {
  std::int64_t widest = 0;
  for (const int reader : readers(part, source)) {
    if (window(reader) == 0) return 0;
    widest = std::max(widest, window(reader));
  }
  return widest;
}

std::int64_t KvMap::owned_parts() const {
  std::int64_t count = 0;
  for (const int layer : kv_layers_) {
    for (const KvPart part : kKvParts) count += owns(part, layer) ? 1 : 0;
  }
  return count;
}

std::string KvMap::explicit_form() const {
  std::string text;
  for (int layer = 0; layer < layers(); ++layer) {
    fmt::format_to(std::back_inserter(text), "{}{}", layer == 0 ? "" : "_", source(KvPart::kKey, layer));
    if (reads_apart(layer)) fmt::format_to(std::back_inserter(text), ":{}", source(KvPart::kValue, layer));
    if (window(layer) > 0) text += 's';
  }
  return text;
}

}  // namespace kvloom
