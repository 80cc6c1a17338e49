// Small models for tests.
#pragma once

#include <string>
#include <vector>

#include "core/config.h"
#include "core/model.h"
#include "core/training_pass.h"
#include "tests/support/random.h"
#include "tests/support/reference_model.h"

namespace kvloom::test {

inline proto::ModelConfig small_model(int layers, const std::string& map, int window = 0) {
  proto::ModelConfig config;
  config.set_layers(static_cast<std::uint32_t>(layers));
  config.set_hidden(16);
  config.set_ffn(24);
  config.set_heads(4);
  config.set_kv_heads(2);
  config.set_vocab(29);
  config.set_context(32);
  config.set_kv_map(map);
  config.set_window(static_cast<std::uint32_t>(window));
  // Large enough that attention is far from uniform and every path matters.
  config.set_initializer_range(0.25);
  return config;
}

// Norm gains and biases away from their starting values, so that their gradients and effects show.
inline void disturb_vectors(Model& model, Random& random) {
  for (const Parameter& parameter : model.layout().all()) {
    if (parameter.shape.size() != 1) continue;
    Tensor values = model.master().view(parameter.offset, parameter.shape);
    for (float& value : values.as<float>()) value += static_cast<float>(0.2 * random.normal());
  }
  model.refresh();
}

inline std::vector<double> weights_of(const Model& model) {
  const auto values = model.master().as<float>();
  return {values.begin(), values.end()};
}

inline const std::vector<std::string>& nine_maps() {
  static const std::vector<std::string> maps = {"pizza-bottom",    "pizza-middle",    "pizza-top",
                                                "sandwich-bottom", "sandwich-middle", "sandwich-top",
                                                "lasagna-bottom",  "lasagna-middle",  "lasagna-top"};
  return maps;
}

// A map of random sources, half of them with layers that read K and V of two; some readers windowed (window given
// beside it).
inline std::string random_map(Random& random, int layers, bool windows) {
  const bool apart = random.flip();
  std::string text;
  for (int layer = 0; layer < layers; ++layer) {
    if (layer > 0) text += '_';
    text += std::to_string(random.integer(0, layers - 1));
    if (apart && random.flip()) text += ":" + std::to_string(random.integer(0, layers - 1));
    if (windows && random.integer(0, 2) == 0) text += 's';
  }
  return text;
}

}  // namespace kvloom::test
