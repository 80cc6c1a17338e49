// Which layer reads whose keys and values: the only place that knows (DESIGN 3; arXiv 2410.14442, section 3).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/attention.h"

namespace kvloom {

class KvMap {
 public:
  // Parses any written form for `layers` layers: explicit `0_2s_2`, named `sandwich-middle:3`, presets. `window` is the
  // W of windowed readers, in positions. Throws InputError with the layer and the reason.
  static KvMap parse(std::string_view text, int layers, std::int64_t window = 0);

  // From one source and one window (0: none) per layer. Throws InputError as above.
  static KvMap from_sources(std::vector<int> sources, std::vector<std::int64_t> windows);

  int layers() const { return static_cast<int>(sources_.size()); }
  int source(int layer) const { return sources_.at(static_cast<std::size_t>(layer)); }
  // W of this reader, in positions; 0: sees everything.
  std::int64_t window(int layer) const { return windows_.at(static_cast<std::size_t>(layer)); }
  Visibility visibility(int layer) const { return source(layer) > layer ? Visibility::kUpward : Visibility::kDownward; }
  bool is_kv_layer(int layer) const { return !readers(layer).empty(); }
  bool reads_upward(int layer) const { return source(layer) > layer; }
  // Whether some layer below a source reads it.
  bool is_read_upward(int source) const { return is_kv_layer(source) && readers(source).front() < source; }

  // Layers whose source is `layer`, ascending.
  std::span<const int> readers(int layer) const { return readers_.at(static_cast<std::size_t>(layer)); }
  // How far back any reader of a KV layer sees: its widest window, in positions; 0: everything. Caches and pages keep
  // no more of a source than that.
  std::int64_t reach(int source) const;
  // The highest layer whose K and V somebody reads: those above it run for wanted positions alone.
  int last_kv_layer() const { return kv_layers_.back(); }
  // Every KV layer, ascending.
  std::span<const int> kv_layers() const { return kv_layers_; }

  // The explicit form, `0_10_10s_11`; parse(explicit_form(), layers(), window) gives this map again.
  std::string explicit_form() const;

  friend bool operator==(const KvMap&, const KvMap&) = default;

 private:
  std::vector<int> sources_;
  std::vector<std::int64_t> windows_;
  std::vector<std::vector<int>> readers_;
  std::vector<int> kv_layers_;
};

}  // namespace kvloom
