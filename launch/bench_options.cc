#include "launch/bench_options.h"

#include "core/kv_map.h"
#include "kernels/error.h"

namespace kvloom {

void BenchOptions::add_model_to(CLI::App& verb) {
  verb.add_option("--layers", layers, "Layers")->capture_default_str();
  verb.add_option("--hidden", hidden, "Hidden size")->capture_default_str();
  verb.add_option("--ffn", ffn, "Feed-forward size")->capture_default_str();
  verb.add_option("--heads", heads, "Query heads")->capture_default_str();
  verb.add_option("--kv-heads", kv_heads, "KV heads")->capture_default_str();
  verb.add_option("--vocab", vocab, "Vocabulary")->capture_default_str();
  verb.add_option("--window", window, "Positions that windowed readers see, of maps that have some");
}

void BenchOptions::add_device_to(CLI::App& verb) {
  verb.add_option("--precision", precision, "f32 or bf16")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str();
  device.add_device_to(verb);
}

void BenchOptions::add_maps_to(CLI::App& verb) {
  verb.add_option("--maps", maps, "KV maps; figures are relative to the first; default: some that so many layers take");
}

std::vector<std::string> maps_of(const BenchOptions& options, const std::vector<std::string>& usual) {
  if (!options.maps.empty()) return options.maps;
  std::vector<std::string> maps = {"none"};
  for (const std::string& map : usual) {
    try {
      KvMap::parse(map, static_cast<int>(options.layers));
      maps.push_back(map);
    } catch (const InputError&) {
      // So few layers have no such map.
    }
  }
  return maps;
}

}  // namespace kvloom
