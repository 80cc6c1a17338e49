#include "core/kv_map_drawing.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <span>

namespace kvloom {
namespace {

constexpr std::size_t kMostColumns = 64;

std::string in_words(const KvMap& map, int layer) {
  const int source = map.source(layer);
  std::string text = source == layer
                         ? std::string("reads itself")
                         : fmt::format("reads {} {}", source, source > layer ? "above, earlier tokens" : "below");
  if (map.window(layer) > 0) text += fmt::format(", the last {} positions", map.window(layer));
  const std::size_t readers = map.readers(layer).size();
  if (readers > 1) text += fmt::format("; {} layers read it", readers);
  return text;
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
        static_cast<std::size_t>(std::ranges::lower_bound(sources_, map_.source(layer)) - sources_.begin());
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
    if (map_.source(layer) == source) return source > layer ? '^' : 'v';
    const std::span<const int> readers = map_.readers(source);
    return std::min(readers.front(), source) < layer && layer < std::max(readers.back(), source) ? '|' : ' ';
  }

  const KvMap& map_;
  std::span<const int> sources_;
  std::size_t width_;
};

}  // namespace

std::string draw(const KvMap& map) {
  const bool wide = map.kv_layers().size() > kMostColumns;
  const Columns columns(map);
  std::string text;
  if (!wide) fmt::format_to(std::back_inserter(text), "{:>10}{}\n", "", columns.heading());
  for (int layer = map.layers() - 1; layer >= 0; --layer) {
    fmt::format_to(std::back_inserter(text), "{:>4} {} {}  {}\n", layer, map.is_kv_layer(layer) ? "[KV]" : "    ",
                   wide ? std::string() : columns.row(layer), in_words(map, layer));
  }
  if (!wide) text += "# KV layer; ^ joined to one above, v to one below; ~ through a window\n";
  return text;
}

}  // namespace kvloom
