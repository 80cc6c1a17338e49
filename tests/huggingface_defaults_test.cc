// What a config.json leaves out is what transformers takes for it (fixtures/huggingface/make_defaults.py).
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "core/convert/huggingface_config.h"
#include "tests/support/temporary_folder.h"

namespace kvloom {
namespace {

using Json = nlohmann::json;

std::vector<int> windows_of(const ModelConfig& model) {
  std::vector<int> windows;
  for (int layer = 0; layer < model.layers; ++layer) windows.push_back(static_cast<int>(model.kv_map.window(layer)));
  return windows;
}

TEST(HuggingFaceDefaults, AreThoseOfTransformersForEachFieldOfEachFamily) {
  const std::string path = std::string(KVLOOM_SOURCE_DIR) + "/tests/fixtures/huggingface/defaults.json";
  const Json entries = Json::parse(read_bytes(path));
  ASSERT_GE(entries.size(), 45u);
  for (const Json& entry : entries) {
    SCOPED_TRACE(entry["config"]["model_type"].get<std::string>() + " without " + entry["left_out"].get<std::string>());
    const ModelConfig model = parse_huggingface_config(entry["config"].dump(), "config.json").model;
    const Json& taken = entry["taken"];
    EXPECT_EQ(model.kv_heads, taken["kv_heads"]);
    EXPECT_EQ(model.head_dim, taken["head_dim"]);
    EXPECT_EQ(model.context, taken["context"]);
    EXPECT_FLOAT_EQ(model.norm_epsilon, taken["norm_epsilon"].get<float>());
    EXPECT_EQ(model.initializer_range, taken["initializer_range"]);
    EXPECT_EQ(model.tied_embeddings, taken["tied_embeddings"]);
    EXPECT_EQ(model.rope_theta, taken["rope_theta"]);
    EXPECT_EQ(model.qkv_bias, taken["qkv_bias"]);
    EXPECT_EQ(windows_of(model), taken["windows"].get<std::vector<int>>());
  }
}

}  // namespace
}  // namespace kvloom
