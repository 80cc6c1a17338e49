#include "core/convert/huggingface_sharing.h"

#include <algorithm>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/kv_map.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

using Json = nlohmann::ordered_json;
using Sources = std::vector<int>;

Sources own_sources(int layers) {
  Sources sources;
  for (int layer = 0; layer < layers; ++layer) sources.push_back(layer);
  return sources;
}

std::optional<Sources> from_source_layers(JsonFields& fields, int layers) {
  const auto given = fields.integers("kv_source_layers");
  if (!given) return std::nullopt;
  if (std::ssize(*given) != layers) {
    reject_input("{}: kv_source_layers names {} layers of {}", fields.where(), given->size(), layers);
  }
  Sources sources;
  for (const std::int64_t source : *given) {
    if (source < 0 || source >= layers) {
      reject_input("{}: kv_source_layers: layer {} reads layer {}; right are 0 to {}", fields.where(), sources.size(),
                   source, layers - 1);
    }
    sources.push_back(static_cast<int>(source));
  }
  return sources;
}

// What each layer is in layer_types, or by its window.
std::vector<std::string> types_of_layers(JsonFields& fields, const KvMap& map) {
  if (const auto types = fields.texts("layer_types")) {
    if (std::ssize(*types) != map.layers()) {
      reject_input("{}: layer_types names {} layers of {}", fields.where(), types->size(), map.layers());
    }
    return *types;
  }
  std::vector<std::string> types;
  for (int layer = 0; layer < map.layers(); ++layer) {
    types.emplace_back(map.window(layer) > 0 ? "sliding_attention" : "full_attention");
  }
  return types;
}

std::optional<Sources> from_shared_count(JsonFields& fields, const KvMap& map) {
  const std::uint32_t shared = fields.integer("num_kv_shared_layers", 0);
  if (shared == 0) return std::nullopt;
  const int layers = map.layers();
  if (shared >= static_cast<std::uint32_t>(layers)) {
    reject_input("{}: num_kv_shared_layers: {} of {} layers; one at least keeps its own", fields.where(), shared,
                 layers);
  }
  const std::vector<std::string> types = types_of_layers(fields, map);
  const auto first = static_cast<std::ptrdiff_t>(layers) - static_cast<std::ptrdiff_t>(shared);
  Sources sources = own_sources(layers);
  for (std::ptrdiff_t layer = first; layer < layers; ++layer) {
    const std::string& type = types[static_cast<std::size_t>(layer)];
    const auto below = std::find(types.rend() - first, types.rend(), type);
    if (below == types.rend()) {
      reject_input("{}: num_kv_shared_layers: layer {} is of type '{}', and no layer below {} is", fields.where(),
                   layer, type, first);
    }
    sources[static_cast<std::size_t>(layer)] = static_cast<int>(types.rend() - below) - 1;
  }
  return sources;
}

std::optional<Sources> from_share_factor(JsonFields& fields, int layers) {
  const auto factor = fields.integer("cla_share_factor");
  if (!fields.boolean("use_cla", false)) return std::nullopt;
  if (!factor || *factor == 0) {
    reject_input("{}: use_cla needs a cla_share_factor of 1 or more", fields.where());
  }
  Sources sources = own_sources(layers);
  for (int& source : sources) source -= source % static_cast<int>(std::min<std::uint32_t>(*factor, 1U << 30));
  return sources;
}

std::optional<Sources> from_reuse_groups(JsonFields& fields, const Json& config, int layers) {
  constexpr const char* kName = "kv_reuse_group";
  if (!fields.has(kName)) return std::nullopt;
  const Json& groups = config.at(kName);
  const auto reject = [&](const std::string& why) { reject_input("{}: {}: {}", fields.where(), kName, why); };
  if (!groups.is_array()) reject("right is a list of lists of layers");
  Sources sources = own_sources(layers);
  std::set<int> seen;
  for (const Json& group : groups) {
    if (!group.is_array()) reject("right is a list of lists of layers");
    std::optional<int> source;
    for (const Json& member : group) {
      if (!member.is_number_unsigned() || member.get<std::uint64_t>() >= static_cast<std::uint64_t>(layers)) {
        reject(fmt::format("{} is no layer of {}", member.dump(), layers));
      }
      const int layer = member.get<int>();
      if (!seen.insert(layer).second) reject(fmt::format("layer {} stands in it twice", layer));
      source = source.value_or(layer);
      sources[static_cast<std::size_t>(layer)] = *source;
    }
  }
  return sources;
}

// Layers of a family without windows that layer_types calls sliding.
void read_sliding_types(JsonFields& fields, const KvMap& map, std::vector<bool>& windowed, proto::ModelConfig& model) {
  const std::vector<std::string> types = types_of_layers(fields, map);
  for (std::size_t layer = 0; layer < types.size(); ++layer) {
    if (types[layer] == "sliding_attention") {
      windowed[layer] = true;
    } else if (types[layer] != "full_attention") {
      reject_input("{}: layer_types: '{}' is not supported", fields.where(), types[layer]);
    }
  }
  if (std::ranges::find(windowed, true) == windowed.end() || model.window() > 0) return;
  const auto window = fields.integer("sliding_window");
  if (!window || *window == 0) {
    reject_input("{}: layer_types has sliding_attention, and sliding_window says no size", fields.where());
  }
  model.set_window(*window);
}

std::string explicit_form(const Sources& sources, const std::vector<bool>& windowed) {
  std::string text;
  for (std::size_t layer = 0; layer < sources.size(); ++layer) {
    text += fmt::format("{}{}{}", layer == 0 ? "" : "_", sources[layer], windowed[layer] ? "s" : "");
  }
  return text;
}

}  // namespace

void read_kv_sharing(JsonFields& fields, const Json& config, proto::ModelConfig& model) {
  constexpr std::uint32_t kMostLayers = 4096;
  const std::string before = model.kv_map().empty() ? "none" : model.kv_map();
  // Bounded here, before lists of that many layers are made.
  if (model.layers() == 0 || model.layers() > kMostLayers) return;
  const auto layers = static_cast<int>(model.layers());
  const KvMap map = KvMap::parse(before, layers, model.window());
  std::vector<std::pair<std::string, Sources>> forms;
  const auto add = [&](const char* name, std::optional<Sources> sources) {
    if (sources) forms.emplace_back(name, std::move(*sources));
  };
  add("kv_source_layers", from_source_layers(fields, layers));
  add("num_kv_shared_layers", from_shared_count(fields, map));
  add("use_cla", from_share_factor(fields, layers));
  add("kv_reuse_group", from_reuse_groups(fields, config, layers));
  if (forms.empty()) return;
  if (forms.size() > 1) {
    reject_input("{}: says by {} and by {} who shares keys and values; right is one of them", fields.where(),
                 forms[0].first, forms[1].first);
  }
  std::vector<bool> windowed;
  for (int layer = 0; layer < layers; ++layer) windowed.push_back(map.window(layer) > 0);
  if (!model.window_everywhere()) read_sliding_types(fields, map, windowed, model);
  model.set_kv_map(explicit_form(forms[0].second, windowed));
}

}  // namespace kvloom
