// Sharing as config.json says it: each family's words give the map that they mean, or are refused by name.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/convert/huggingface_config.h"
#include "core/convert/plan_models.h"
#include "core/decoder.h"
#include "core/inference_model.h"
#include "infer/engine/engine.h"
#include "tests/support/huggingface_folder.h"
#include "tests/support/model_fixture.h"
#include "tests/support/process.h"
#include "train/loaded_model.h"

namespace kvloom {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::string config_of(const std::string& family, const std::string& fields, int layers = 8) {
  std::string config = test::llama_config(layers, fields);
  config.replace(config.find("\"llama\""), 7, "\"" + family + "\"");
  return config;
}

std::string map_of(const std::string& family, const std::string& fields, int layers = 8) {
  return parse_huggingface_config(config_of(family, fields, layers), "c").model.kv_map.explicit_form();
}

std::string refusal(const std::string& family, const std::string& fields, int layers = 8) {
  try {
    return "accepted as " + map_of(family, fields, layers);
  } catch (const InputError& error) {
    return error.what();
  }
}

constexpr const char* kTypes =
    R"("layer_types": ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention",
    "full_attention", "sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 6, )";

TEST(KvSharingConfig, EachFormGivesItsMap) {
  EXPECT_EQ(map_of("llama", R"("kv_source_layers": [0, 1, 1, 1, 4, 4, 4, 4], )"), "0_1_1_1_4_4_4_4");
  EXPECT_EQ(map_of("llama", R"("kv_source_layers": [0, 3, 3, 3, 4, 5, 6, 7], )"), "0_3_3_3_4_5_6_7");
  EXPECT_EQ(map_of("llama", R"("use_cla": true, "cla_share_factor": 2, )"), "0_0_2_2_4_4_6_6");
  EXPECT_EQ(map_of("qwen3", R"("use_cla": true, "cla_share_factor": 3, )"), "0_0_0_3_3_3_6_6");
  EXPECT_EQ(map_of("llama", R"("use_cla": false, "cla_share_factor": 2, )"), "0_1_2_3_4_5_6_7");
  EXPECT_EQ(map_of("mistral", R"("sliding_window": 6, "use_cla": true, "cla_share_factor": 4, )"),
            "0s_0s_0s_0s_4s_4s_4s_4s");
  EXPECT_EQ(map_of("llama", R"("kv_reuse_group": [[1, 2], [3, 4, 5]], )"), "0_1_1_3_3_3_6_7");
  EXPECT_EQ(map_of("llama", R"("kv_reuse_group": [], )"), "0_1_2_3_4_5_6_7");
  EXPECT_EQ(map_of("llama", R"("num_kv_shared_layers": 5, )"), "0_1_2_2_2_2_2_2");
  EXPECT_EQ(map_of("llama", R"("num_kv_shared_layers": 0, )"), "0_1_2_3_4_5_6_7");
}

// Gemma's rule: a layer of the shared ones reads the last of its own type below them.
TEST(KvSharingConfig, SharedLayersReadTheLastOfTheirOwnType) {
  EXPECT_EQ(map_of("llama", std::string(R"("num_kv_shared_layers": 5, )") + kTypes), "0s_1_2s_2s_1_2s_1_2s");
  EXPECT_EQ(map_of("qwen2", std::string(R"("use_sliding_window": true, "num_kv_shared_layers": 3, )") + kTypes),
            "0s_1_2s_3s_4_3s_4_3s");
}

TEST(KvSharingConfig, WhatIsNotWholeIsRefusedByName) {
  EXPECT_THAT(refusal("llama", R"("kv_source_layers": [0, 1], )"),
              AllOf(HasSubstr("kv_source_layers"), HasSubstr("8")));
  EXPECT_THAT(refusal("llama", R"("kv_source_layers": [0, 1, 2, 3, 4, 5, 6, 8], )"),
              AllOf(HasSubstr("kv_source_layers"), HasSubstr("layer 7 reads layer 8")));
  EXPECT_THAT(refusal("llama", R"("kv_source_layers": [0, 1, 2, 3, 4, 5, 6, -1], )"), HasSubstr("kv_source_layers"));
  EXPECT_THAT(refusal("llama", R"("kv_source_layers": {"1": 0}, )"), HasSubstr("kv_source_layers"));
  EXPECT_THAT(refusal("llama", R"("num_kv_shared_layers": 8, )"), HasSubstr("num_kv_shared_layers: 8 of 8"));
  EXPECT_THAT(refusal("llama", std::string(R"("num_kv_shared_layers": 7, )") + kTypes),
              HasSubstr("layer 1 is of type 'full_attention'"));
  EXPECT_THAT(refusal("llama", R"("num_kv_shared_layers": 1, "layer_types": ["full_attention"], )"),
              HasSubstr("layer_types"));
  EXPECT_THAT(refusal("llama", R"("num_kv_shared_layers": 1, "layer_types": ["full_attention", "linear_attention",
                                  "full_attention"], )",
                      3),
              HasSubstr("'linear_attention' is not supported"));
  EXPECT_THAT(refusal("llama", R"("num_kv_shared_layers": 1, "layer_types": ["full_attention", "sliding_attention",
                                  "full_attention"], )",
                      3),
              HasSubstr("sliding_window"));
  EXPECT_THAT(refusal("llama", R"("use_cla": true, )"), HasSubstr("cla_share_factor"));
  EXPECT_THAT(refusal("llama", R"("use_cla": true, "cla_share_factor": 0, )"), HasSubstr("cla_share_factor"));
  EXPECT_THAT(refusal("llama", R"("kv_reuse_group": [[1, 2], [2, 3]], )"), HasSubstr("layer 2 stands in it twice"));
  EXPECT_THAT(refusal("llama", R"("kv_reuse_group": [[1, 8]], )"), HasSubstr("8 is no layer of 8"));
  EXPECT_THAT(refusal("llama", R"("kv_reuse_group": [1, 2], )"), HasSubstr("kv_reuse_group"));
  EXPECT_THAT(refusal("llama", R"("use_cla": true, "cla_share_factor": 2, "num_kv_shared_layers": 2, )"),
              AllOf(HasSubstr("use_cla"), HasSubstr("num_kv_shared_layers")));
  for (const char* field : {R"("kv_source_layers": [0, 0, 2, 2, 4, 4, 6, 6], )", R"("num_kv_shared_layers": 2, )",
                            R"("use_cla": true, "cla_share_factor": 2, )", R"("kv_reuse_group": [[1, 2]], )"}) {
    EXPECT_THAT(refusal("lckv-llama", field), HasSubstr("layer_types")) << field;
  }
}

TEST(KvSharingConfig, TheExplicitFormAndNoDiagonalGoOutAndComeBack) {
  const std::string fields = R"("layer_types": "0s_1s_2s_3_3:0_3:0s", "sliding_window": 5, "force_nodiag": true, )";
  const HuggingFaceModel read = parse_huggingface_config(config_of("lckv-llama", fields, 6), "c");
  EXPECT_EQ(read.model.kv_map, KvMap::parse("0s_1s_2s_3_3:0_3:0s", 6, 5, Diagonal::kHidden));
  const std::string anew = huggingface_config("lckv-llama", read.model, read.passes, DType::kF32, "");
  EXPECT_THAT(anew, AllOf(HasSubstr(R"("layer_types": "0s_1s_2s_3_3:0_3:0s")"), HasSubstr(R"("force_nodiag": true)")));
  EXPECT_EQ(parse_huggingface_config(anew, "c").model.kv_map, read.model.kv_map);
  // No other family can say that nobody sees itself.
  ModelConfig plain = with_map(read.model, "none", 0);
  EXPECT_EQ(family_for(plain, "llama"), "lckv-llama");
  EXPECT_EQ(plain.kv_map.diagonal(), Diagonal::kHidden);
}

class KvSharingFolder : public ::testing::Test {
 protected:
  std::string printed(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), KVLOOM_BINARY);
    const test::ProcessResult result = test::run_process(std::move(arguments), {.folder = folder_.path()});
    EXPECT_EQ(result.status, 0) << result.error;
    return result.output;
  }

  // Greedy logits of the folder's model, token by token, against the double-precision model's.
  void expect_computed(const std::string& name) {
    printed({"convert", name, name + ".kvloom"});
    CachingCpuAllocator allocator;
    const LoadedModel loaded = load_model((folder_ / (name + ".kvloom")).string(), DType::kF32, allocator);
    const Model& model = *loaded.model;
    const auto tokens = random_.tokens(12, model.config().vocab);
    const test::Rows expected =
        test::ReferenceModel(model.config())
            .sequential(test::weights_of(model), std::vector<int>(tokens.begin(), tokens.end()));
    Decoder decoder(model, 1, 12);
    for (std::size_t t = 0; t < tokens.size(); ++t) {
      const auto logits =
          decoder.step(Tensor::of<std::int32_t>(allocator, {1}, std::vector{tokens[t]})).values<float>();
      for (std::size_t i = 0; i < logits.size(); ++i) EXPECT_NEAR(logits[i], expected[t][i], 1e-4) << t << ", " << i;
    }
  }

  TemporaryFolder folder_;
  test::Random random_;
};

TEST_F(KvSharingFolder, AModelOfItsOwnWordsIsComputedAsItsMapSays) {
  for (const auto& [name, fields] :
       {std::pair("nodiag", R"("layer_types": "0_2_2_3", "force_nodiag": true, )"),
        std::pair("apart", R"("layer_types": "0s_1_2:0_1:3", "sliding_window": 3, )"),
        std::pair("both", R"("layer_types": "0_3:1_1:2_2:0s", "sliding_window": 3, "force_nodiag": true, )")}) {
    test::write_huggingface_folder(folder_, name, config_of("lckv-llama", fields, 4), DType::kF32, random_);
    expect_computed(name);
    printed({"convert", std::string(name) + ".kvloom", std::string(name) + ".hf", "--to", "hf"});
    EXPECT_EQ(test::tensors_at(folder_ / (std::string(name) + ".hf")), test::tensors_at(folder_ / name)) << name;
  }
}

// Families keep projections that sharing layers do not use: they go nowhere, and the reason is said.
TEST_F(KvSharingFolder, UnusedProjectionsAreLeftOverWithTheirReason) {
  const Shape shape = {8, 16};
  test::write_huggingface_folder(
      folder_, "a", config_of("llama", R"("num_kv_shared_layers": 2, )", 4), DType::kF32, random_,
      {{"model.layers.2.self_attn.k_proj.weight", shape}, {"model.layers.3.self_attn.v_proj.weight", shape}});
  const std::string said = printed({"convert", "a", "b"});
  EXPECT_THAT(said, HasSubstr("left over, layer 2 reads layer 1: model.layers.2.self_attn.k_proj.weight"));
  EXPECT_THAT(said, HasSubstr("left over, layer 3 reads layer 1: model.layers.3.self_attn.v_proj.weight"));
  expect_computed("a");
}

// FusedKV-Lite from a model without sharing: K of the middle's own weights, V of the bottom's.
TEST_F(KvSharingFolder, ConvertToKeysAndValuesOfTwoLayersTakesEachFromItsSource) {
  test::write_huggingface_folder(folder_, "a", test::llama_config(6), DType::kF32, random_);
  const std::string said = printed({"convert", "a", "b", "--map", "0_1:0_2_2:0_2:0_2:0"});
  EXPECT_THAT(said, HasSubstr("left over, layer 1 reads V of layer 0: model.layers.1.self_attn.v_proj.weight"));
  const test::StoredTensors a = test::tensors_at(folder_ / "a");
  const test::StoredTensors b = test::tensors_at(folder_ / "b");
  std::vector<std::string> kept;
  for (const auto& [name, tensor] : b) {
    EXPECT_EQ(tensor, a.at(name)) << name;
    if (name.find("k_proj") != name.npos || name.find("v_proj") != name.npos) kept.push_back(name.substr(13, 18));
  }
  EXPECT_THAT(kept, ::testing::ElementsAre("0.self_attn.k_proj", "0.self_attn.v_proj", "1.self_attn.k_proj",
                                           "2.self_attn.k_proj", "2.self_attn.v_proj"));
}

}  // namespace
}  // namespace kvloom
