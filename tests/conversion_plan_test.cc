// Plans: what their operations compute, what they refuse; and config.json to and from a model's shape.
#include "core/convert/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "core/convert/huggingface_config.h"
#include "core/convert/plan_models.h"
#include "tests/support/huggingface_folder.h"
#include "tests/support/mutate.h"

namespace kvloom {
namespace {

using ::testing::HasSubstr;

// A file with a [4, 6], b [4, 6] and c [3, 6], f32, and h [6] bf16.
class Plan : public ::testing::Test {
 protected:
  Plan() {
    const std::vector<SafetensorsTensor> tensors = {
        {"a", {4, 6}, DType::kF32}, {"b", {4, 6}, DType::kF32}, {"c", {3, 6}, DType::kF32}, {"h", {6}, DType::kBF16}};
    SafetensorsWriter writer(folder_ / "x.safetensors", tensors);
    for (const SafetensorsTensor& tensor : tensors) {
      const std::string bytes = test::random_bytes(element_count(tensor.shape), tensor.dtype, random_);
      writer.append(tensor.name, std::as_bytes(std::span(bytes)));
    }
    writer.finish();
    source_ = open_safetensors(folder_ / "x.safetensors");
    all_ = test::tensors_of(*source_);
  }

  // The rest of the source, so that nothing is unclaimed.
  static std::string with_rest(const std::string& tensors) {
    std::string text = "format: 1 " + tensors;
    for (const char* name : {"a", "b", "c", "h"}) {
      if (text.find(fmt::format("tensor: \"{}\"", name)) == text.npos) {
        text += fmt::format(" left_over {{ name: \"{}\" reason: \"test\" }}", name);
      }
    }
    return text;
  }

  // The first tensor of the plan, computed in pieces of random rows.
  std::vector<double> compute(const std::string& tensors) {
    PlannedConversion conversion(parse_plan(with_rest(tensors), "plan.pbtxt"), *source_);
    const PlannedTensor& planned = conversion.tensors()[0];
    test::StoredTensor stored{planned.shape, std::string(name_of(planned.dtype)), {}};
    for (std::int64_t row = 0; row < planned.shape[0];) {
      Rectangle rows{Shape(planned.shape.size(), 0), planned.shape};
      rows.offset[0] = row;
      rows.shape[0] = random_.integer(1, planned.shape[0] - row);
      std::string bytes(static_cast<std::size_t>(element_count(rows.shape)) * size_of(planned.dtype), '\0');
      conversion.compute(0, rows, std::as_writable_bytes(std::span(bytes)));
      stored.bytes += bytes;
      row += rows.shape[0];
    }
    return stored.values();
  }

  std::string refusal(const std::string& text) {
    try {
      PlannedConversion conversion(parse_plan(text, "plan.pbtxt"), *source_);
    } catch (const InputError& error) {
      return error.what();
    }
    return "nothing was thrown";
  }

  double at(const std::string& name, std::int64_t row, std::int64_t column) const {
    const test::StoredTensor& tensor = all_.at(name);
    return tensor.values()[static_cast<std::size_t>(row * tensor.shape.back() + column)];
  }

  test::Random random_;
  TemporaryFolder folder_;
  std::unique_ptr<TensorSource> source_;
  test::StoredTensors all_;
};

TEST_F(Plan, SlicesAndTransposes) {
  const std::vector<double> turned = compute(
      R"(tensors { name: "t" shape: [3, 2] inputs { tensor: "a" offset: [1, 2] shape: [2, 3] transpose: true } })");
  for (std::int64_t row = 0; row < 3; ++row) {
    for (std::int64_t column = 0; column < 2; ++column) {
      EXPECT_EQ(turned[static_cast<std::size_t>(row * 2 + column)], at("a", 1 + column, 2 + row));
    }
  }
}

TEST_F(Plan, ConcatenatesAlongEitherAxis) {
  const std::vector<double> rows =
      compute(R"(tensors { name: "t" operation: CONCATENATE axis: 0 inputs { tensor: "a" } inputs { tensor: "c" } })");
  for (std::int64_t i = 0; i < 42; ++i) {
    EXPECT_EQ(rows[static_cast<std::size_t>(i)], i < 24 ? at("a", i / 6, i % 6) : at("c", i / 6 - 4, i % 6));
  }
  const std::vector<double> columns = compute(
      R"(tensors { name: "t" operation: CONCATENATE axis: 1 inputs { tensor: "a" shape: [4, 2] offset: [0, 1] }
         inputs { tensor: "b" } })");
  for (std::int64_t row = 0; row < 4; ++row) {
    for (std::int64_t column = 0; column < 8; ++column) {
      EXPECT_EQ(columns[static_cast<std::size_t>(row * 8 + column)],
                column < 2 ? at("a", row, column + 1) : at("b", row, column - 2));
    }
  }
}

TEST_F(Plan, AveragesInDoubleAndCasts) {
  const std::vector<double> mean = compute(
      R"(tensors { name: "t" operation: AVERAGE dtype: "bf16" inputs { tensor: "a" } inputs { tensor: "b" }
         inputs { tensor: "a" } })");
  for (std::int64_t i = 0; i < 24; ++i) {
    const double exact = (2 * at("a", i / 6, i % 6) + at("b", i / 6, i % 6)) / 3;
    EXPECT_EQ(mean[static_cast<std::size_t>(i)],
              static_cast<double>(static_cast<float>(BFloat16(static_cast<float>(exact)))));
  }
  // f16 holds every bf16 in its normal range, and steps by 2^-24 below.
  const std::vector<double> half = compute(R"(tensors { name: "t" dtype: "f16" inputs { tensor: "h" } })");
  for (std::int64_t i = 0; i < 6; ++i) EXPECT_NEAR(half[static_cast<std::size_t>(i)], at("h", 0, i), 3e-8);
  EXPECT_EQ(compute(R"(tensors { name: "t" operation: ZERO shape: [3] dtype: "f32" })"), std::vector<double>(3, 0));
}

TEST_F(Plan, WhatDoesNotGoTogetherIsRefusedByName) {
  const auto refused = [&](const std::string& tensors) { return refusal(with_rest(tensors)); };
  EXPECT_THAT(refusal(R"(format: 1 tensors { name: "t" inputs { tensor: "a" } })"), HasSubstr("b, c, h"));
  EXPECT_THAT(refused(R"(tensors { name: "t" inputs { tensor: "nope" } })"), HasSubstr("nope"));
  EXPECT_THAT(refused(R"(tensors { name: "t" inputs { tensor: "a" offset: [3, 0] shape: [2, 6] } })"),
              HasSubstr("not inside a of shape [4, 6]"));
  EXPECT_THAT(refused(R"(tensors { name: "t" inputs { tensor: "a" offset: [-1, 0] } })"), HasSubstr("not inside"));
  EXPECT_THAT(refused(R"(tensors { name: "t" operation: AVERAGE inputs { tensor: "a" } inputs { tensor: "c" } })"),
              HasSubstr("c of shape [3, 6] does not go together with a of shape [4, 6]"));
  EXPECT_THAT(refused(R"(tensors { name: "t" shape: [6, 4] inputs { tensor: "a" } })"), HasSubstr("must be [6, 4]"));
  EXPECT_THAT(refused(R"(tensors { name: "t" inputs { tensor: "h" transpose: true } })"), HasSubstr("1 axes"));
  EXPECT_THAT(refused(R"(tensors { name: "t" dtype: "u8" inputs { tensor: "a" } })"), HasSubstr("cannot become u8"));
  EXPECT_THAT(refused(R"(tensors { name: "t" })"), HasSubstr("COPY does not take 0 inputs"));
  EXPECT_THAT(refusal("format: 2"), HasSubstr("format 2"));
  EXPECT_THAT(refusal("format: 1\ntensors { nam: \"t\" }"), HasSubstr("plan.pbtxt:2:"));
  EXPECT_THAT(refusal("tensors { operation: MEAN }"), HasSubstr("COPY, CONCATENATE, AVERAGE, ZERO"));
}

TEST_F(Plan, AsTextComesBack) {
  test::write_huggingface_folder(folder_, "m", test::llama_config(4), DType::kF32, random_);
  const ModelSource source = open_model_source(folder_ / "m");
  TargetModel target{.form = ModelForm::kCheckpoint, .model = source.model, .passes = {}, .family = {}, .dtype = {}};
  target.model = with_map(source.model, "sandwich-middle:3", std::nullopt);
  target.kv_init = KvInit::kAverage;
  const proto::ConversionPlan plan = plan_conversion(source, target);
  EXPECT_EQ(parse_plan(to_text(plan), "x").SerializeAsString(), plan.SerializeAsString());
  EXPECT_THAT(to_text(plan), HasSubstr("operation: AVERAGE"));
}

// One change of a llama's config.json, and what the refusal names.
TEST(HuggingFaceConfig, SettingsThatMakeAnotherModelAreRefusedByName) {
  const std::pair<const char*, const char*> cases[] = {
      {R"("hidden_act": "gelu", )", "hidden_act: 'gelu'"},
      {R"("mlp_bias": true, )", "mlp_bias"},
      {R"("quantization_config": {"bits": 4}, )", "quantization_config"},
      {R"("rope_scaling": {"rope_type": "longrope", "factor": 2.0}, )", "'longrope'"},
      {R"("rope_scaling": {"type": "su", "factor": 2.0}, )", "'su'"},
      {R"("rope_scaling": {"rope_type": "linear"}, )", "no factor"},
      {R"("rope_scaling": {"rope_type": "linear", "factor": 0.5}, )", "factor"},
      {R"("rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0}, )",
       "low_frequency_factor"},
      {R"("rope_scaling": {"rope_type": "yarn", "factor": 2.0, "full_attention": {"rope_theta": 1}}, )",
       "full_attention"},
      {R"("rope_parameters": {"sliding_attention": {"rope_theta": 1}}, )", "sliding_attention"},
      {R"("original_max_position_embeddings": 8,
          "rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16}, )",
       "original_max_position_embeddings is 16, and beside it 8"},
      {R"("rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
          "rope_scaling": {"rope_type": "yarn", "factor": 2.0}, )",
       "rope_theta is 1000000 in rope_parameters and 10000 for rope_scaling"},
      {R"("rope_scaling": "linear", )", "rope_scaling"},
      {R"("rope_theta": -1, )", "rope_theta"},
      {R"("partial_rotary_factor": 0.5, )", "partial_rotary_factor"},
      {R"("head_dim": "big", )", "head_dim"},
      {R"("head_dim": 0, )", "head_dim"},
      {R"("head_dim": 3, )", "head_dim"},
      {R"("rms_norm_eps": -1, )", "norm_epsilon"},
      {R"("tie_word_embeddings": 1, )", "tie_word_embeddings"},
  };
  for (const auto& [field, named] : cases) {
    try {
      parse_huggingface_config(test::llama_config(2, field), "config.json");
      ADD_FAILURE() << field << " was taken";
    } catch (const InputError& error) {
      EXPECT_THAT(error.what(), testing::AllOf(HasSubstr("config.json"), HasSubstr(named))) << field;
    }
  }
}

std::string rope_of(const std::string& field) {
  const ModelConfig model = parse_huggingface_config(test::llama_config(2, field), "config.json").model;
  return fmt::format("{} {}", model.rope_theta, model.rope_scaling.ShortDebugString());
}

TEST(HuggingFaceConfig, RopeScalingCountsWhereBothObjectsStand) {
  const std::string yarn = R"("rope_scaling": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 500.0,
                              "original_max_position_embeddings": 8}, )";
  EXPECT_EQ(rope_of(yarn + R"("rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}, )"), rope_of(yarn));
  EXPECT_EQ(rope_of(yarn + R"("rope_parameters": {"rope_theta": 500.0, "rope_type": "linear", "factor": 2.0}, )"),
            rope_of(yarn));
  const std::string newer = R"("rope_parameters": {"rope_theta": 700.0, "rope_type": "linear", "factor": 2.0}, )";
  EXPECT_EQ(rope_of(R"("rope_scaling": null, )" + newer), rope_of(newer));
  EXPECT_EQ(rope_of(R"("rope_scaling": {}, )" + newer), rope_of(newer)) << "an empty one says nothing";
  EXPECT_EQ(parse_huggingface_config(test::llama_config(2, yarn + R"("rope_parameters": {"rope_theta": 500.0}, )"), "c")
                .unheeded,
            std::vector<std::string>{"c: rope_parameters, since rope_scaling is given"});
}

TEST(HuggingFaceConfig, TheOriginalContextMayStandBesideTheScaling) {
  for (const std::string kind : {"yarn", "llama3"}) {
    const std::string start =
        R"("rope_scaling": {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "factor": 4.0, "type": ")" + kind + "\"";
    const std::string inside = start + R"(, "original_max_position_embeddings": 8}, )";
    EXPECT_EQ(rope_of(start + R"(}, "original_max_position_embeddings": 8, )"), rope_of(inside)) << kind;
    EXPECT_EQ(rope_of(inside + R"("original_max_position_embeddings": 8, )"), rope_of(inside)) << kind;
    EXPECT_NE(rope_of(start + "}, "), rope_of(inside)) << kind;
  }
}

// Hunyuan's own formula: base * alpha^(dim / (dim - 2)), here with heads of 4.
TEST(HuggingFaceConfig, AlphaOfADynamicScalingMakesTheBaseLarger) {
  const auto scaled = [](const std::string& more) {
    const std::string fields =
        R"("rope_theta": 500.0, "rope_scaling": {"type": "dynamic", "alpha": 9.0)" + more + "}, ";
    return parse_huggingface_config(test::llama_config(2, fields), "c").model;
  };
  EXPECT_DOUBLE_EQ(scaled("").rope_theta, 500.0 * 81);
  EXPECT_EQ(scaled(R"(, "factor": 1.0, "beta_fast": 32, "mscale": 1.0)").rope_scaling.kind(), proto::RopeScaling::NONE);
  EXPECT_THROW(scaled(R"(, "factor": 2.0)"), InputError);
  EXPECT_THROW(
      parse_huggingface_config(test::llama_config(2, R"("rope_scaling": {"type": "dynamic", "alpha": -1.0}, )"), "c"),
      InputError);
}

TEST(HuggingFaceConfig, KeysThatMeanNothingToAScalingArePassedOverWithAWord) {
  for (const std::string kind : {"linear", "dynamic", "llama3", "yarn"}) {
    const std::string start =
        R"("rope_scaling": {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "factor": 4.0, "type": ")" + kind + "\"";
    const std::string more = R"(, "attn_factor": 0.9, "finetuned": true, "nothing": null}, )";
    EXPECT_EQ(rope_of(start + more), rope_of(start + "}, ")) << kind;
    const auto unheeded = parse_huggingface_config(test::llama_config(2, start + more), "c").unheeded;
    EXPECT_THAT(unheeded, testing::Contains("c: rope_scaling: attn_factor means nothing to scaling '" + kind + "'"));
    EXPECT_THAT(unheeded, testing::Contains(HasSubstr("finetuned")));
    EXPECT_THAT(unheeded, testing::Not(testing::Contains(HasSubstr("'nothing'"))));
  }
  EXPECT_TRUE(parse_huggingface_config(test::llama_config(2, R"("rope_scaling": {"type": "linear", "factor": 2.0,
                                        "attention_factor": null}, )"),
                                       "c")
                  .unheeded.empty());
}

TEST(HuggingFaceConfig, TheWindowOfMistralCountsWhateverLayerTypesSay) {
  const auto mistral = [](const std::string& field) {
    std::string config = test::llama_config(2, field);
    config.replace(config.find("\"llama\""), 7, "\"mistral\"");
    return parse_huggingface_config(config, "c");
  };
  const std::string mixed = R"("layer_types": ["full_attention", "sliding_attention"], )";
  const HuggingFaceModel windowed = mistral(mixed + R"("sliding_window": 8, )");
  EXPECT_EQ(windowed.model.kv_map.explicit_form(), "0s_1s");
  EXPECT_THAT(windowed.unheeded, testing::ElementsAre(HasSubstr("layer_types: all layers of a mistral model are "
                                                                "sliding_attention")));
  const HuggingFaceModel full = mistral(mixed + R"("sliding_window": null, )");
  EXPECT_EQ(full.model.kv_map.explicit_form(), "0_1");
  EXPECT_EQ(full.unheeded.size(), 1);
  EXPECT_TRUE(
      mistral(R"("layer_types": ["full_attention", "full_attention"], "sliding_window": null, )").unheeded.empty());
}

TEST(HuggingFaceConfig, WrittenAnewItSaysTheSameModel) {
  test::Random random;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::filesystem::path(KVLOOM_SOURCE_DIR) / "tests/fixtures/huggingface")) {
    if (!entry.is_directory()) continue;
    const HuggingFaceModel first = parse_huggingface_config(read_bytes(entry.path() / "config.json"), "first");
    const std::string family = family_for(first.model, "");
    const std::string anew = huggingface_config(family, first.model, first.passes, DType::kF32, "");
    const HuggingFaceModel second = parse_huggingface_config(anew, "second");
    EXPECT_EQ(second.model.to_proto().DebugString(), first.model.to_proto().DebugString()) << entry.path();
  }
}

TEST(HuggingFaceConfig, EachFamilyGetsWhatItCanSay) {
  ModelConfig model = parse_huggingface_config(test::llama_config(4), "x").model;
  EXPECT_EQ(family_for(model, ""), "llama");
  EXPECT_EQ(family_for(with_map(model, "cla:2", std::nullopt), "llama"), "lckv-llama");
  EXPECT_EQ(family_for(with_map(model, "0s_1s_2s_3s", 5), "llama"), "mistral");
  EXPECT_EQ(family_for(with_map(model, "0s_1s_2s_3", 5), "llama"), "lckv-llama");
  model.qkv_bias = true;
  EXPECT_EQ(family_for(model, ""), "qwen2");
  EXPECT_EQ(family_for(model, "llama"), "llama");
  EXPECT_EQ(family_for(with_map(model, "0s_1s_2s_3", 5), ""), "qwen2");
  model.qk_norm = true;
  EXPECT_EQ(family_for(model, "qwen3"), "qwen3");
  EXPECT_THROW(family_for(with_map(model, "cla:2", std::nullopt), "qwen3"), InputError);
}

TEST(HuggingFaceConfig, DamageIsRefusedOrTaken) {
  test::Random random;
  std::string lckv = test::llama_config(4, R"("layer_types": "0_2s_2_3", "sliding_window": 7,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1, "high_freq_factor": 4}, )");
  lckv.replace(lckv.find("\"llama\""), 7, "\"lckv-llama\"");
  test::fuzz({lckv, test::llama_config(3)}, random, [](const std::string& text) {
    const HuggingFaceModel parsed = parse_huggingface_config(text, "config.json");
    huggingface_config(parsed.family, parsed.model, parsed.passes, DType::kBF16, text);
  });
}

TEST(HuggingFaceConfig, DamagedPlansAreRefusedOrTaken) {
  test::Random random;
  const TemporaryFolder folder;
  test::write_huggingface_folder(folder, "m", test::llama_config(1), DType::kF32, random);
  const ModelSource source = open_model_source(folder / "m");
  const TargetModel target{
      .form = ModelForm::kCheckpoint, .model = source.model, .passes = {}, .family = {}, .dtype = {}};
  test::fuzz({to_text(plan_conversion(source, target))}, random, [&](const std::string& text) {
    PlannedConversion conversion(parse_plan(text, "plan.pbtxt"), *source.tensors);
    check_model_tensors(conversion.tensors(), target);
  });
}

}  // namespace
}  // namespace kvloom
