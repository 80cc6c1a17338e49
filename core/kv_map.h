// Which layer reads whose keys and values: the only place that knows (DESIGN 3; arXiv 2410.14442, section 3).
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/attention.h"

namespace kvloom {

enum class KvPart : std::uint8_t { kKey, kValue };
inline constexpr std::array kKvParts = {KvPart::kKey, KvPart::kValue};
constexpr std::string_view name_of(KvPart part) { return part == KvPart::kKey ? "K" : "V"; }

// One thing for keys and one for values.
template <typename T>
struct ByPart {
  T key{};
  T value{};

  T& operator[](KvPart part) { return part == KvPart::kKey ? key : value; }
  const T& operator[](KvPart part) const { return part == KvPart::kKey ? key : value; }

  friend bool operator==(const ByPart&, const ByPart&) = default;
};

// What one layer's queries read: K of one layer and V of the same or of another.
struct KvReads {
  ByPart<int> source;
  std::int64_t window = 0;  // W, in positions; 0: none

  friend bool operator==(const KvReads&, const KvReads&) = default;
};

// Whether downward reads see their own position; upward reads never do.
enum class Diagonal : std::uint8_t { kSeen, kHidden };

class KvMap {
 public:
  // Parses any written form for `layers` layers: explicit `0_2s_2:0`, named `sandwich-middle:3`, presets. `window` is
  // the W of windowed readers, in positions. Throws InputError with the layer and the reason.
  static KvMap parse(std::string_view text, int layers, std::int64_t window = 0, Diagonal diagonal = Diagonal::kSeen);

  // From what each layer reads. Throws InputError as above.
  static KvMap from_reads(std::vector<KvReads> reads, Diagonal diagonal = Diagonal::kSeen);

  // This map with other windows, one a layer. Throws InputError as above.
  KvMap with_windows(const std::vector<std::int64_t>& windows) const;

  int layers() const { return static_cast<int>(reads_.size()); }
  int source(KvPart part, int layer) const { return at(layer).source[part]; }
  bool reads_apart(int layer) const { return at(layer).source.key != at(layer).source.value; }
  // The higher one of K's source and V's.
  int highest_source(int layer) const { return std::max(at(layer).source.key, at(layer).source.value); }
  // W of this reader, in positions; 0: sees everything.
  std::int64_t window(int layer) const { return at(layer).window; }
  Diagonal diagonal() const { return diagonal_; }
  Visibility visibility(int layer) const {
    return diagonal_ == Diagonal::kHidden || reads_upward(layer) ? Visibility::kUpward : Visibility::kDownward;
  }
  // Whether K or V come from above; then neither is seen at the query's own position.
  bool reads_upward(int layer) const { return highest_source(layer) > layer; }

  // Whether some layer reads this layer's K, or V: then it owns W_K, or W_V.
  bool owns(KvPart part, int layer) const { return !readers(part, layer).empty(); }
  bool is_kv_layer(int layer) const { return owns(KvPart::kKey, layer) || owns(KvPart::kValue, layer); }
  // Whether some layer below a source reads this part of it.
  bool is_read_upward(KvPart part, int source) const {
    return owns(part, source) && readers(part, source).front() < source;
  }
  // Layers whose source of this part is `layer`, ascending.
  std::span<const int> readers(KvPart part, int layer) const {
    return readers_[part].at(static_cast<std::size_t>(layer));
  }
  // How far back any reader of a source's K, or V, sees: its widest window, in positions; 0: everything. Caches and
  // pages keep no more of it than that.
  std::int64_t reach(KvPart part, int source) const;
  // The highest layer whose K or V somebody reads: those above it run for wanted positions alone.
  int last_kv_layer() const { return kv_layers_.back(); }
  // Every layer whose K or V somebody reads, ascending.
  std::span<const int> kv_layers() const { return kv_layers_; }
  // Ks and Vs that layers own, both counted.
  std::int64_t owned_parts() const;

  // The explicit form, `0_10_10s_11:0`; parse(explicit_form(), layers(), window, diagonal()) gives this map again.
  std::string explicit_form() const;

  friend bool operator==(const KvMap&, const KvMap&) = default;

 private:
  const KvReads& at(int layer) const { return reads_.at(static_cast<std::size_t>(layer)); }

  std::vector<KvReads> reads_;
  Diagonal diagonal_ = Diagonal::kSeen;
  ByPart<std::vector<std::vector<int>>> readers_;
  std::vector<int> kv_layers_;
};

}  // namespace kvloom
