#include "core/kv_map_drawing.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <span>

namespace kvloom {
namespace {

constexpr std::size_t kMostColumns = 64;

std::string readers_in_words(const KvMap& map, int layer) {
  const std::span<const int> keys = map.readers(KvPart::kKey, layer);
  const std::span<const int> values = map.readers(KvPart::kValue, layer);
  if (!std::ranges::equal(keys, values)) return fmt::format("; readers: K {}, V {}", keys.size(), values.size());
  return keys.size() > 1 ? fmt::format("; {} layers read it", keys.size()) : "";
}

std::string in_words(const KvMap& map, int layer) {
  const int key = map.source(KvPart::kKey, layer);
  std::string text = "reads ";
  if (map.reads_apart(layer)) {
    text += fmt::format("K of {}, V of {}", key, map.source(KvPart::kValue, layer));
  } else if (key == layer) {
    text += "itself";
  } else {
    text += fmt::format("{} {}", key, key > layer ? "above" : "below");
  }
  if (map.reads_upward(layer)) text += ", earlier tokens";
  if (map.window(layer) > 0) text += fmt::format(", the last {} positions", map.window(layer));
  return text + readers_in_words(map, layer);
}

class Columns {
 public:
  explicit Columns(const KvMap& map)
      : map_(map),
        sources_(map.kv_layers()),
        width_(std::max<std::size_t>(3, 1 + std::to_string(sources_.back()).size())) {}

  std::string heading() const {
    std::string text;
    for (const int source : sources_) text += fmt::format("{:>{}}", source, width_);
    return text;
  }

  std::string row(int layer) const {
    const auto joined =
        static_cast<std::size_t>(std::ranges::lower_bound(sources_, map_.highest_source(layer)) - sources_.begin());
    const char rail = map_.window(layer) > 0 ? '~' : '-';
    std::string text;
    for (std::size_t i = 0; i < sources_.size(); ++i) {
      const char mark = mark_at(sources_[i], layer);
      text += std::string(width_ - 1, i <= joined ? rail : ' ');
      text += mark == ' ' && i < joined ? rail : mark;
    }
    return text;
  }

 private:
  char mark_at(int source, int layer) const {
    if (layer == source) return '#';
    const bool key = map_.source(KvPart::kKey, layer) == source;
    const bool value = map_.source(KvPart::kValue, layer) == source;
    if (key && value) return source > layer ? '^' : 'v';
    if (key || value) return key ? 'K' : 'V';
    int lowest = source;
    int highest = source;
    for (const KvPart part : kKvParts) {
      if (!map_.owns(part, source)) continue;
      lowest = std::min(lowest, map_.readers(part, source).front());
      highest = std::max(highest, map_.readers(part, source).back());
    }
    return lowest < layer && layer < highest ? '|' : ' ';
  }

  const KvMap& map_;
  std::span<const int> sources_;
  std::size_t width_;
};

std::string_view owned(const KvMap& map, int layer) {
  if (map.owns(KvPart::kKey, layer)) return map.owns(KvPart::kValue, layer) ? "[KV]" : "[K ]";
  return map.owns(KvPart::kValue, layer) ? "[ V]" : "    ";
}

}  // namespace

std::string draw(const KvMap& map) {
  const bool wide = map.kv_layers().size() > kMostColumns;
  const Columns columns(map);
  bool apart = false;
  std::string text;
  if (!wide) fmt::format_to(std::back_inserter(text), "{:>10}{}\n", "", columns.heading());
  for (int layer = map.layers() - 1; layer >= 0; --layer) {
    fmt::format_to(std::back_inserter(text), "{:>4} {} {}  {}\n", layer, owned(map, layer),
                   wide ? std::string() : columns.row(layer), in_words(map, layer));
    apart = apart || map.reads_apart(layer);
  }
  if (wide) return text;
  text += "# KV layer; ^ joined to one above, v to one below; ";
  if (apart) text += "K or V, to one for that alone; ";
  return text + "~ through a window\n";
}

}  // namespace kvloom
