#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "core/config.h"
#include "core/kv_kept.h"
#include "core/kv_map.h"
#include "core/kv_map_drawing.h"
#include "core/kv_pages.h"
#include "core/map_runs.h"
#include "kernels/dtype.h"
#include "kernels/error.h"
#include "launch/at_least.h"
#include "launch/verbs.h"

namespace kvloom {
namespace {

constexpr int kLargestHeads = 1 << 20;

struct Options {
  int layers = 0;
  std::string map;
  std::int64_t window = 0;
  Passes passes;
  std::int64_t prompt = 1024;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  std::string dtype = "bf16";
  bool explicit_form = false;
  bool json = false;
};

MapRuns runs_of(const KvMap& map, const Options& options) { return runs_of_map(map, options.passes, options.prompt); }

MapRuns runs_of_no_sharing(const KvMap& map, const Options& options) {
  return runs_of(KvMap::parse("none", map.layers()), options);
}

// What a sequence of so many positions keeps; of a windowed source no more than its widest window. Without heads given,
// in rows of K and V instead of bytes.
std::int64_t bytes_kept(const KvMap& map, const Options& options, std::int64_t positions) {
  ModelConfig model;
  model.kv_heads = std::max<std::int64_t>(1, options.kv_heads);
  model.head_dim = std::max<std::int64_t>(1, options.head_dim);
  model.kv_map = map;
  return kv_bytes(model, parse_kv_format(options.dtype), positions);
}

double kept_relative(const KvMap& map, const Options& options) {
  return static_cast<double>(bytes_kept(map, options, options.prompt)) /
         static_cast<double>(bytes_kept(KvMap::parse("none", map.layers()), options, options.prompt));
}

void print_segments(const KvMap& map) {
  for (const Segment& segment : segments_of(map)) {
    fmt::print("  layers {} to {}: {}\n", segment.first, segment.last,
               segment.iterated ? "iterated together" : "one pass");
  }
}

void print_text(const KvMap& map, const Options& options) {
  const MapRuns costs = runs_of(map, options);
  const MapRuns no_sharing = runs_of_no_sharing(map, options);
  const auto sources = static_cast<std::int64_t>(map.kv_layers().size());
  fmt::print("{}\n\n", map.explicit_form());
  fmt::print("{}", draw(map));
  fmt::print("\nSegments:\n");
  print_segments(map);
  fmt::print("\nLayer runs, m = {}, b = {}:\n", options.passes.without_gradient, options.passes.with_gradient);
  fmt::print("  prompt of {}: {} ({} for the asked positions alone), {} of K/V alone; {:.2f} times no sharing\n",
             options.prompt, costs.prompt.blocks, costs.prompt.asked_only, costs.prompt.key_value_only,
             prompt_relative(costs, no_sharing));
  fmt::print("  training step: {}, {} with gradient, {} of K/V alone; {:.2f} times no sharing\n", costs.training.blocks,
             costs.training.blocks_with_gradient, costs.training.key_value_only, training_relative(costs, no_sharing));
  fmt::print("\nKept of K and V:\n");
  for (const std::string& line : reach_lines(map)) fmt::print("  {}\n", line);
  fmt::print("\nKV cache: {} of {} layers; after {} tokens {:.3f} of no sharing", sources, map.layers(), options.prompt,
             kept_relative(map, options));
  if (options.kv_heads > 0 && options.head_dim > 0) {
    fmt::print(", {} bytes in {}; {} bytes a token", bytes_kept(map, options, options.prompt), options.dtype,
               bytes_kept(map, options, 1));
  }
  fmt::print("\n");
}

nlohmann::ordered_json to_json(const LayerRunCount& count) {
  return {{"blocks", count.blocks},
          {"blocks_with_gradient", count.blocks_with_gradient},
          {"key_value_only", count.key_value_only},
          {"without_attention", count.without_attention},
          {"asked_only", count.asked_only}};
}

void print_json(const KvMap& map, const Options& options) {
  const MapRuns costs = runs_of(map, options);
  const MapRuns no_sharing = runs_of_no_sharing(map, options);
  nlohmann::ordered_json layers = nlohmann::ordered_json::array();
  for (int layer = 0; layer < map.layers(); ++layer) {
    const int key = map.source(KvPart::kKey, layer);
    layers.push_back(
        {{"source", map.reads_apart(layer) ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(key)},
         {"key_source", key},
         {"value_source", map.source(KvPart::kValue, layer)},
         {"window", map.window(layer)},
         {"upward", map.reads_upward(layer)},
         {"kv_layer", map.is_kv_layer(layer)},
         {"owns_key", map.owns(KvPart::kKey, layer)},
         {"owns_value", map.owns(KvPart::kValue, layer)}});
  }
  nlohmann::ordered_json segments = nlohmann::ordered_json::array();
  for (const Segment& segment : segments_of(map)) {
    segments.push_back({{"first", segment.first}, {"last", segment.last}, {"iterated", segment.iterated}});
  }
  nlohmann::ordered_json reach = nlohmann::ordered_json::array();
  for (const ReachGroup& group : reach_groups(map)) {
    reach.push_back({{"reach", group.reach},
                     {"sources", group.layers()},
                     {"keys_of", group.sources.key},
                     {"values_of", group.sources.value}});
  }
  nlohmann::ordered_json all = {{"explicit", map.explicit_form()},
                                {"layers", layers},
                                {"reach", reach},
                                {"segments", segments},
                                {"prompt_runs", to_json(costs.prompt)},
                                {"training_runs", to_json(costs.training)},
                                {"prompt_relative", prompt_relative(costs, no_sharing)},
                                {"training_relative", training_relative(costs, no_sharing)},
                                {"kv_relative", kept_relative(map, options)}};
  if (options.kv_heads > 0 && options.head_dim > 0) {
    all["kv_bytes_per_token"] = bytes_kept(map, options, 1);
    all["kv_bytes"] = bytes_kept(map, options, options.prompt);
  }
  fmt::print("{}\n", all.dump(2));
}

void show(const Options& options) {
  if ((options.kv_heads > 0) != (options.head_dim > 0)) {
    reject_input("--kv-heads and --head-dim: bytes need both; only one is given");
  }
  const KvMap map = KvMap::parse(options.map, options.layers, options.window);
  if (options.explicit_form) {
    fmt::print("{}\n", map.explicit_form());
  } else if (options.json) {
    print_json(map, options);
  } else {
    print_text(map, options);
  }
}

}  // namespace

void add_kvmap(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* verb = app.add_subcommand("kvmap", "Draw a KV map: which layer reads whose K/V, and what it costs");
  verb->add_option("--layers", options->layers, "Layers of the model")->required();
  verb->add_option(
          "--map", options->map,
          "0_2_2, 0s_2 or 0_1_1:0 (explicit), <pizza|sandwich|lasagna>-<bottom|quarter|middle|three-quarter|top>:<l>, "
          "none, cla:<group>, yoco, yoco:<l>, lckv:<w>, mlkv:<l>, last-shared:<n>, "
          "fused-lite:<n>")
      ->required();
  verb->add_option("--window", options->window, "Positions that windowed readers see")->check(at_least(0));
  verb->add_option("--passes-without-gradient", options->passes.without_gradient, "m, of iterated segments")
      ->capture_default_str();
  verb->add_option("--passes-with-gradient", options->passes.with_gradient, "b, the last ones")->capture_default_str();
  verb->add_option("--prompt", options->prompt, "Tokens of the prompt that is counted")
      ->check(at_least(1))
      ->capture_default_str();
  verb->add_option("--kv-heads", options->kv_heads, "For absolute bytes: KV heads")
      ->check(CLI::Range(1, kLargestHeads));
  verb->add_option("--head-dim", options->head_dim, "For absolute bytes: size of a head")
      ->check(CLI::Range(1, kLargestHeads));
  verb->add_option("--dtype", options->dtype, "For absolute bytes: f32, bf16 or int8")
      ->check(CLI::IsMember({"f32", "bf16", "int8"}))
      ->capture_default_str();
  verb->add_flag("--explicit", options->explicit_form, "Print the explicit form alone");
  verb->add_flag("--json", options->json, "Print JSON");
  verb->footer(
      "Kept of K and V: of each source the positions that its widest reader sees. In JSON, a reach of 0 is every "
      "position.\n"
      "Example: kvloom kvmap --layers 22 --map sandwich-middle:3 --kv-heads 4 --head-dim 64\n"
      "Example: kvloom kvmap --layers 4 --map 0s_2_2_3 --window 128 --passes-without-gradient 3 --json");
  verb->callback([options] { show(*options); });
}

}  // namespace kvloom
