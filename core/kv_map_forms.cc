// The written forms of a KV map (DESIGN 3).
#include <charconv>
#include <optional>
#include <utility>

#include "core/kv_map.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

constexpr int kMostLayers = 4096;

struct Form {
  std::vector<ByPart<int>> sources;
  std::vector<bool> windowed;
};

enum class Position : std::uint8_t { kBottom, kQuarter, kMiddle, kThreeQuarter, kTop };

std::optional<int> parse_number(std::string_view text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc() || end != text.data() + text.size() || value < 0) return std::nullopt;
  return value;
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (std::size_t begin = 0;;) {
    const std::size_t end = text.find(separator, begin);
    parts.push_back(text.substr(begin, end - begin));
    if (end == std::string_view::npos) return parts;
    begin = end + 1;
  }
}

Form own_sources(int layers) {
  Form form;
  for (int layer = 0; layer < layers; ++layer) form.sources.push_back({layer, layer});
  form.windowed.assign(static_cast<std::size_t>(layers), false);
  return form;
}

int target_of(int low, int high, Position position) {
  switch (position) {
    case Position::kBottom:
      return low;
    case Position::kQuarter:
      return low + (high - low) / 4;
    case Position::kMiddle:
      return low + (high - low) / 2;
    case Position::kThreeQuarter:
      return low + (high - low) * 3 / 4;
    case Position::kTop:
      return high;
  }
  return low;
}

void share(Form& form, int low, int high, Position position) {
  for (int layer = low; layer <= high; ++layer) {
    const int target = target_of(low, high, position);
    form.sources[static_cast<std::size_t>(layer)] = {target, target};
  }
}

Form pizza(int layers, int l, Position position) {
  Form form = own_sources(layers);
  share(form, l - 1, layers - 1, position);
  return form;
}

Form sandwich(int layers, int l, Position position) {
  Form form = own_sources(layers);
  share(form, l / 2, layers - 1 - (l - 1) / 2, position);
  return form;
}

// `groups` consecutive groups of [low, layers), sizes as even as possible, the larger ones at the bottom.
void share_evenly(Form& form, int low, int groups, Position position) {
  const int count = static_cast<int>(form.sources.size()) - low;
  for (int group = 0; group < groups; ++group) {
    const int size = count / groups + (group < count % groups ? 1 : 0);
    share(form, low, low + size - 1, position);
    low += size;
  }
}

// The paper keeps layer 0 a KV layer in every lasagna map (arXiv 2410.14442, section 3.2).
Form lasagna(int layers, int l, Position position) {
  Form form = own_sources(layers);
  const bool first_alone = l >= 2 && position != Position::kBottom;
  share_evenly(form, first_alone ? 1 : 0, first_alone ? l - 1 : l, position);
  return form;
}

// The lower layers windowed over their own K/V, layer l - 1 the one source of all above (arXiv 2405.05254).
Form yoco(int layers, int l) {
  Form form = pizza(layers, l, Position::kBottom);
  for (int layer = 0; layer < l - 1; ++layer) form.windowed[static_cast<std::size_t>(layer)] = true;
  return form;
}

Form cla(int layers, int group) {
  Form form = own_sources(layers);
  for (int layer = 0; layer < layers; ++layer) {
    const int first = layer / group * group;
    form.sources[static_cast<std::size_t>(layer)] = {first, first};
  }
  return form;
}

// The lower n layers over their own K/V; all above read K of the highest of them and V of layer 0 (FusedKV-Lite,
// arXiv 2512.03870).
Form fused_lite(int layers, int n) {
  Form form = own_sources(layers);
  for (int layer = n; layer < layers; ++layer) form.sources[static_cast<std::size_t>(layer)] = {n - 1, 0};
  return form;
}

struct Named {
  std::string_view text;  // as written, for messages
  int layers;

  int count(std::string_view value, std::string_view what, int least, int most) const {
    const std::optional<int> number = parse_number(value);
    if (!number.has_value() || *number < least || *number > most) {
      reject_input("kv map '{}': {} must be {} to {} for {} layers, not '{}'", text, what, least, most, layers, value);
    }
    return *number;
  }
};

std::optional<Position> position_named(std::string_view name) {
  if (name == "bottom") return Position::kBottom;
  if (name == "quarter") return Position::kQuarter;
  if (name == "middle") return Position::kMiddle;
  if (name == "three-quarter") return Position::kThreeQuarter;
  if (name == "top") return Position::kTop;
  return std::nullopt;
}

std::optional<Form> parse_partition(const Named& named, std::string_view head, std::string_view value) {
  const std::size_t dash = head.find('-');
  if (dash == std::string_view::npos) return std::nullopt;
  const std::string_view partition = head.substr(0, dash);
  const std::optional<Position> position = position_named(head.substr(dash + 1));
  if (!position.has_value()) return std::nullopt;
  if (partition != "pizza" && partition != "sandwich" && partition != "lasagna") return std::nullopt;
  const int l = named.count(value, "the number of KV layers", 1, named.layers);
  if (partition == "pizza") return pizza(named.layers, l, *position);
  if (partition == "sandwich") return sandwich(named.layers, l, *position);
  return lasagna(named.layers, l, *position);
}

std::optional<Form> parse_preset(const Named& named, std::string_view head, std::optional<std::string_view> value) {
  const int layers = named.layers;
  if (!value.has_value()) {
    if (head == "none") return own_sources(layers);
    if (head == "yoco") return yoco(layers, layers / 2 + 1 <= layers ? layers / 2 + 1 : layers);
    return std::nullopt;
  }
  if (head == "cla") return cla(layers, named.count(*value, "the group", 1, layers));
  if (head == "yoco") return yoco(layers, named.count(*value, "the number of KV layers", 1, layers));
  if (head == "mlkv") {
    return lasagna(layers, named.count(*value, "the number of KV layers", 1, layers), Position::kBottom);
  }
  if (head == "lckv") {
    return sandwich(layers, named.count(*value, "the number of warm-up layers", 0, layers - 1) + 1, Position::kTop);
  }
  if (head == "fused-lite") {
    return fused_lite(layers, named.count(*value, "the number of layers that share nothing", 1, layers));
  }
  if (head == "last-shared") {
    const int shared = named.count(*value, "the number of sharing layers", 0, layers - 1);
    return pizza(layers, layers - shared, Position::kBottom);
  }
  return parse_partition(named, head, *value);
}

// `3`, or `3:0` for K of layer 3 and V of layer 0.
std::optional<ByPart<int>> parse_sources(std::string_view text) {
  const std::size_t colon = text.find(':');
  const std::optional<int> key = parse_number(text.substr(0, colon));
  const std::optional<int> value = colon == std::string_view::npos ? key : parse_number(text.substr(colon + 1));
  if (!key.has_value() || !value.has_value()) return std::nullopt;
  return ByPart<int>{*key, *value};
}

Form parse_explicit(std::string_view text) {
  Form form;
  for (std::string_view part : split(text, '_')) {
    const bool windowed = part.ends_with('s');
    if (windowed) part.remove_suffix(1);
    const std::optional<ByPart<int>> sources = parse_sources(part);
    if (!sources.has_value()) {
      reject_input(
          "kv map: layer {} has source '{}', which is no layer number, or two as K:V; write it like 0_2s_2 or 0_1_1:0",
          form.sources.size(), part.substr(0, 32));
    }
    if (form.sources.size() == kMostLayers) reject_input("kv map: names more than {} layers", kMostLayers);
    form.sources.push_back(*sources);
    form.windowed.push_back(windowed);
  }
  return form;
}

Form parse_form(std::string_view text, int layers) {
  if (text.empty()) reject_input("kv map: is empty; 'none' means that every layer is its own source");
  if (text.front() >= '0' && text.front() <= '9') return parse_explicit(text);
  const std::size_t colon = text.find(':');
  const std::string_view head = text.substr(0, colon);
  std::optional<std::string_view> value;
  if (colon != std::string_view::npos) value = text.substr(colon + 1);
  std::optional<Form> form = parse_preset({text.substr(0, 64), layers}, head, value);
  if (!form.has_value()) {
    reject_input(
        "kv map '{}': unknown form; right are an explicit map (0_2_2 or 0_1_1:0), <pizza|sandwich|lasagna>-"
        "<bottom|quarter|middle|three-quarter|top>:<l>, none, cla:<group>, yoco, yoco:<l>, lckv:<w>, mlkv:<l>, "
        "last-shared:<n>, fused-lite:<n>",
        text.substr(0, 64));
  }
  return std::move(*form);
}

}  // namespace

KvMap KvMap::parse(std::string_view text, int layers, std::int64_t window, Diagonal diagonal) {
  if (layers < 1 || layers > kMostLayers) reject_input("kv map: {} layers; right are 1 to {}", layers, kMostLayers);
  const Form form = parse_form(text, layers);
  if (static_cast<int>(form.sources.size()) != layers) {
    reject_input("kv map: names {} layers, the model has {}", form.sources.size(), layers);
  }
  std::vector<KvReads> reads;
  for (std::size_t layer = 0; layer < form.sources.size(); ++layer) {
    if (form.windowed[layer] && window <= 0) {
      reject_input("kv map '{}': layer {} is windowed; give a positive window (model.window, --window), not {}",
                   text.substr(0, 64), layer, window);
    }
    reads.push_back({form.sources[layer], form.windowed[layer] ? window : 0});
  }
  return from_reads(std::move(reads), diagonal);
}

}  // namespace kvloom
