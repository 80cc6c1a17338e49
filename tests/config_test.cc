// Configs: what defaults are filled in, what is refused and with which words, and that what is written reads back.
#include "core/config.h"

#include <gmock/gmock.h>
#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>

#include "kernels/error.h"
#include "tests/support/random.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/thrown.h"

namespace kvloom {
namespace {

using ::google::protobuf::util::MessageDifferencer;
using ::testing::AllOf;
using ::testing::HasSubstr;
using Overrides = std::vector<std::string>;

constexpr const char* kSmall =
    "model { layers: 4 hidden: 32 ffn: 48 heads: 4 vocab: 257 context: 32 }\n"
    "data { tokens: \"tokens.h5\" }\n";

proto::RunConfig parsed(const Overrides& overrides = {}, const std::string& text = kSmall) {
  return parse_run_config("run.pbtxt", text, overrides);
}

std::string refusal(const Overrides& overrides, const std::string& text = kSmall) {
  try {
    parsed(overrides, text);
  } catch (const InputError& error) {
    return error.what();
  }
  return "accepted";
}

TEST(RunConfig, DefaultsAreFilledIn) {
  const proto::RunConfig config = parsed();
  EXPECT_EQ(config.passes().without_gradient(), 7);
  EXPECT_EQ(config.passes().with_gradient(), 2);
  EXPECT_EQ(config.train().steps(), 200);
  EXPECT_EQ(config.train().global_batch(), 16);
  EXPECT_EQ(config.train().micro_batch(), 4);
  EXPECT_EQ(config.train().learning_rate(), 1e-3);
  EXPECT_EQ(config.train().minimum_learning_rate(), 1e-4);
  EXPECT_EQ(config.train().weight_decay(), 0.1);
  EXPECT_EQ(config.train().beta1(), 0.9);
  EXPECT_EQ(config.train().beta2(), 0.95);
  EXPECT_EQ(config.train().epsilon(), 1e-8);
  EXPECT_EQ(config.train().gradient_clip(), 1);
  EXPECT_EQ(config.train().decay_steps(), 20);
  EXPECT_EQ(config.train().evaluation_sequences(), 64);
  EXPECT_EQ(config.mesh().data(), 0);
  EXPECT_EQ(config.mesh().pipeline(), 1);
  EXPECT_EQ(config.mesh().tensor(), 1);
  EXPECT_EQ(config.output().directory(), "out");
}

TEST(RunConfig, WhatIsGivenStaysEvenWhenItIsZero) {
  const proto::RunConfig config = parsed({"passes.without_gradient=0", "train.weight_decay=0", "train.gradient_clip=0",
                                          "train.beta1=0", "train.minimum_learning_rate=0"});
  EXPECT_EQ(config.passes().without_gradient(), 0);
  EXPECT_EQ(config.train().weight_decay(), 0);
  EXPECT_EQ(config.train().gradient_clip(), 0);
  EXPECT_EQ(config.train().beta1(), 0);
  EXPECT_EQ(config.train().minimum_learning_rate(), 0);
}

TEST(RunConfig, TextReadsBackAsTheSameConfig) {
  const proto::RunConfig config = parsed({"model.kv_map=0s_2_2_3", "model.window=7", "train.learning_rate=0.1"});
  EXPECT_TRUE(MessageDifferencer::Equals(config, parsed({}, to_text(config)))) << to_text(config);
}

// As --print-config shows it: another run can start from it, and it has what no one has set.
TEST(RunConfig, FullTextNamesEveryFieldAndReadsBackAsTheSameConfig) {
  for (const Overrides& overrides :
       {Overrides{}, Overrides{"model.kv_map=0s_2_2_3", "model.window=7"}, Overrides{"train.warmup_steps=5"},
        Overrides{"model.window=7", "model.window_everywhere=true"},
        Overrides{"model.rope_scaling.kind=LINEAR", "model.rope_scaling.factor=2"}}) {
    const proto::RunConfig config = parsed(overrides);
    const std::string text = to_full_text(config);
    const proto::RunConfig again = parse_run_config("full", text, {});
    const auto resolved = [](const proto::RunConfig& run) { return ModelConfig::from_proto(run.model()).to_proto(); };
    EXPECT_TRUE(MessageDifferencer::Equals(resolved(config), resolved(again))) << text;
    EXPECT_TRUE(MessageDifferencer::Equals(config.train(), again.train())) << text;
    EXPECT_TRUE(MessageDifferencer::Equals(config.mesh(), again.mesh())) << text;
    EXPECT_TRUE(MessageDifferencer::Equals(config.output(), again.output())) << text;
    EXPECT_TRUE(MessageDifferencer::Equals(config.passes(), again.passes())) << text;
    for (const char* line :
         {"precision: F32", "recompute: NONE", "schedule: COSINE", "tensorboard: false", "placement: AUTO",
          "rope_theta: 10000", "norm_epsilon: 1e-05", "head_dim: ", "start_from: \"\""}) {
      EXPECT_THAT(text, HasSubstr(line));
    }
  }
}

TEST(RunConfig, ZeroOfWhatCannotBeNoneIsRefused) {
  for (const std::string field : {"steps", "micro_batch", "global_batch", "evaluation_sequences", "learning_rate"}) {
    EXPECT_THAT(test::message_of([&] { parsed({"train." + field + "=0"}); }),
                HasSubstr("train." + field + ": 0; right is"));
  }
}

TEST(RunConfig, IsLoadedFromItsFile) {
  TemporaryFolder folder;
  const auto file = folder.write("run.pbtxt", kSmall);
  EXPECT_TRUE(MessageDifferencer::Equals(load_run_config(file, Overrides{"train.steps=9"}), parsed({"train.steps=9"})));
  EXPECT_THROW(load_run_config(folder / "missing.pbtxt", {}), InputError);
}

TEST(Override, SetsEveryKindOfField) {
  const proto::RunConfig config =
      parsed({"train.steps=11", "train.learning_rate=3e-4", "train.precision=BF16", "train.recompute=FULL",
              "model.tied_embeddings=true", "model.qk_norm=1", "output.directory=some folder",
              "data.tokens=\"quoted.h5\"", "data.validation_tokens='single.h5'", "train.seed=18446744073709551615",
              "model.rope_scaling.kind=LINEAR", "model.rope_scaling.factor=2"});
  EXPECT_EQ(config.train().steps(), 11);
  EXPECT_EQ(config.train().learning_rate(), 3e-4);
  EXPECT_EQ(config.train().precision(), proto::TrainConfig::BF16);
  EXPECT_EQ(config.train().recompute(), proto::TrainConfig::FULL);
  EXPECT_TRUE(config.model().tied_embeddings());
  EXPECT_TRUE(config.model().qk_norm());
  EXPECT_EQ(config.output().directory(), "some folder");
  EXPECT_EQ(config.data().tokens(), "quoted.h5");
  EXPECT_EQ(config.data().validation_tokens(), "single.h5");
  EXPECT_EQ(config.train().seed(), 18446744073709551615u);
  EXPECT_EQ(config.model().rope_scaling().kind(), proto::RopeScaling::LINEAR);
  EXPECT_EQ(config.model().rope_scaling().factor(), 2);
}

TEST(Override, TheLaterWinsOverTheFileAndTheEarlier) {
  EXPECT_EQ(parsed({"model.ffn=64"}).model().ffn(), 64);
  EXPECT_EQ(parsed({"model.ffn=64", "model.ffn=80"}).model().ffn(), 80);
}

TEST(Override, AStringIsTakenAsItIsWritten) {
  for (const std::string value :
       {"a\"b", "back\\slash", "two\nlines", "tab\t", "caf\xc3\xa9", "'", "\"", "a=b", "#x", "{ }", ""}) {
    const proto::RunConfig config = parsed({"data.tokens=" + value});
    EXPECT_EQ(config.data().tokens(), value);
  }
}

TEST(Override, SetsItsOneFieldAlone) {
  for (const std::string text : {"train.steps=3 seed: 9", "train.steps=3 } model { layers: 2", "train.steps=3, seed: 9",
                                 "data.tokens=\"a\" validation_tokens: \"b\"", "train.steps=3 # } }"}) {
    if (text.starts_with("data")) {
      EXPECT_EQ(parsed({text}).data().validation_tokens(), "") << text;
    } else {
      EXPECT_THAT(refusal({text}), HasSubstr("train.steps")) << text;
    }
  }
}

TEST(Override, RefusalsNameItAndWhatWouldBeRight) {
  EXPECT_THAT(refusal({"train.step=3"}), AllOf(HasSubstr("train.step=3"), HasSubstr("steps")));
  EXPECT_THAT(refusal({"trian.steps=3"}), AllOf(HasSubstr("trian"), HasSubstr("train")));
  EXPECT_THAT(refusal({"train.steps=soon"}), AllOf(HasSubstr("train.steps=soon"), HasSubstr("integer")));
  EXPECT_THAT(refusal({"train.steps=-1"}), HasSubstr("train.steps=-1"));
  EXPECT_THAT(refusal({"train.steps=1.5"}), HasSubstr("train.steps=1.5"));
  EXPECT_THAT(refusal({"train.steps=4294967296"}), HasSubstr("train.steps=4294967296"));
  EXPECT_THAT(refusal({"train.steps="}), HasSubstr("train.steps="));
  EXPECT_THAT(refusal({"train.precision=F16"}), AllOf(HasSubstr("F16"), HasSubstr("BF16")));
  EXPECT_THAT(refusal({"train.precision=7"}), HasSubstr("F32, BF16"));
  EXPECT_THAT(refusal({"model.qk_norm=perhaps"}), HasSubstr("perhaps"));
  EXPECT_THAT(refusal({"train"}), HasSubstr("field.path=value"));
  EXPECT_THAT(refusal({"=3"}), HasSubstr("field.path=value"));
  EXPECT_THAT(refusal({""}), HasSubstr("field.path=value"));
  EXPECT_THAT(refusal({"train=3"}), AllOf(HasSubstr("group"), HasSubstr("learning_rate")));
  EXPECT_THAT(refusal({"train.steps.more=3"}), HasSubstr("no fields of its own"));
  EXPECT_THAT(refusal({"train.=3"}), HasSubstr("no field ''"));
  EXPECT_THAT(refusal({"..=3"}), HasSubstr("no field ''"));
}

TEST(RunConfig, RefusalsInTheFileNamePlaceAndField) {
  EXPECT_THAT(refusal({}, "model {\n  layer: 4\n}\n"),
              AllOf(HasSubstr("run.pbtxt:2:"), HasSubstr("layer"), HasSubstr("layers, hidden")));
  EXPECT_THAT(refusal({}, "modell { }"), AllOf(HasSubstr("run.pbtxt:1:"), HasSubstr("model, passes")));
  EXPECT_THAT(refusal({}, "model { layers: \"four\" }"), AllOf(HasSubstr("run.pbtxt:1:"), HasSubstr("four")));
  EXPECT_THAT(refusal({}, "train {\n\n precision: F16 }"), AllOf(HasSubstr("run.pbtxt:3:"), HasSubstr("F16")));
  EXPECT_THAT(refusal({}, "model {"), HasSubstr("run.pbtxt:1:"));
  EXPECT_THAT(refusal({}, "model { layers: 4 layers: 5 }"), AllOf(HasSubstr("run.pbtxt:1:"), HasSubstr("\"layers\"")));
  EXPECT_THAT(refusal({}, ""), HasSubstr("model.layers"));
}

TEST(RunConfig, ValuesOutOfRangeAreRefusedByField) {
  const std::vector<std::pair<Overrides, std::string>> cases = {
      {{"train.global_batch=6", "train.micro_batch=4"}, "global_batch"},
      {{"train.learning_rate=-1"}, "train.learning_rate"},
      {{"train.learning_rate=inf"}, "train.learning_rate"},
      {{"train.learning_rate=nan"}, "train.learning_rate"},
      {{"train.minimum_learning_rate=1"}, "train.minimum_learning_rate"},
      {{"train.weight_decay=-0.1"}, "train.weight_decay"},
      {{"train.weight_decay=nan"}, "train.weight_decay"},
      {{"train.beta1=1"}, "train.beta1"},
      {{"train.beta2=nan"}, "train.beta2"},
      {{"train.epsilon=0"}, "train.epsilon"},
      {{"train.epsilon=inf"}, "train.epsilon"},
      {{"train.gradient_clip=-1"}, "train.gradient_clip"},
      {{"train.gradient_clip=nan"}, "train.gradient_clip"},
      {{"train.global_batch=4000000000", "train.micro_batch=4000000000"}, "train.global_batch"},
      {{"passes.with_gradient=0"}, "passes.with_gradient"},
      {{"passes.without_gradient=4294967295"}, "passes.without_gradient"},
      {{"train.steps=9", "train.warmup_steps=10"}, "train.warmup_steps: 10; right is at most train.steps 9"},
      {{"mesh.pipeline=0"}, "pipeline"},
      {{"mesh.memory_gib=1e300"}, "mesh.memory_gib"},
      {{"mesh.memory_gib=1e-300"}, "mesh.memory_gib"},
      {{"mesh.memory_gib=nan"}, "mesh.memory_gib"},
      {{"mesh.link_gbps=1e300"}, "mesh.link_gbps"},
      {{"mesh.link_gbps=-1"}, "mesh.link_gbps"},
      {{"mesh.device_tflops=inf"}, "mesh.device_tflops"},
      {{"mesh.device_tflops=1e300"}, "mesh.device_tflops"},
      {{"mesh.tensor=0"}, "tensor"},
  };
  for (const auto& [overrides, field] : cases) EXPECT_THAT(refusal(overrides), HasSubstr(field)) << overrides[0];
}

proto::ModelConfig small_message() { return parsed().model(); }

TEST(ModelConfig, DefaultsAreFilledIn) {
  const ModelConfig config = ModelConfig::from_proto(small_message());
  EXPECT_EQ(config.kv_heads, 4);
  EXPECT_EQ(config.head_dim, 8);
  EXPECT_EQ(config.kv_map, KvMap::parse("none", 4));
  EXPECT_EQ(config.rope_theta, 10000);
  EXPECT_EQ(config.norm_epsilon, 1e-5f);
  EXPECT_EQ(config.initializer_range, 0.02);
}

TEST(ModelConfig, WindowEverywhereWindowsEveryReader) {
  const ModelConfig config = ModelConfig::from_proto(
      parsed({"model.window=6", "model.window_everywhere=true", "model.kv_map=lckv:1"}).model());
  for (int layer = 0; layer < 4; ++layer) EXPECT_EQ(config.kv_map.window(layer), 6);
  EXPECT_THAT(refusal({"model.window_everywhere=true"}), HasSubstr("model.window"));
}

TEST(ModelConfig, ResolvedFormReadsBackAsItself) {
  test::Random random;
  for (int round = 0; round < 100; ++round) {
    proto::ModelConfig message;
    const std::int64_t kv_heads = random.integer(1, 4);
    message.set_layers(static_cast<std::uint32_t>(random.integer(1, 12)));
    message.set_kv_heads(static_cast<std::uint32_t>(kv_heads));
    message.set_heads(static_cast<std::uint32_t>(kv_heads * random.integer(1, 4)));
    message.set_head_dim(static_cast<std::uint32_t>(2 * random.integer(1, 40)));
    message.set_hidden(static_cast<std::uint32_t>(random.integer(1, 500)));
    message.set_ffn(static_cast<std::uint32_t>(random.integer(1, 500)));
    message.set_vocab(static_cast<std::uint32_t>(random.integer(2, 100000)));
    message.set_context(static_cast<std::uint32_t>(random.integer(1, 4096)));
    message.set_window(static_cast<std::uint32_t>(random.integer(1, 64)));
    message.set_kv_map(std::vector<std::string>{"yoco", "none", "sandwich-top:1",
                                                "cla:1"}[static_cast<std::size_t>(random.integer(0, 3))]);
    message.set_window_everywhere(random.flip());
    message.set_norm_epsilon(random.real(1e-7, 1e-3));
    message.set_rope_theta(random.real(1, 1e6));
    message.set_tied_embeddings(random.flip());
    message.set_qkv_bias(random.flip());
    message.set_qk_norm(random.flip());
    const ModelConfig config = ModelConfig::from_proto(message);
    const ModelConfig again = ModelConfig::from_proto(config.to_proto());
    EXPECT_TRUE(MessageDifferencer::Equals(config.to_proto(), again.to_proto())) << message.ShortDebugString();
    EXPECT_EQ(config.kv_map, again.kv_map) << message.ShortDebugString();
    EXPECT_EQ(config.norm_epsilon, again.norm_epsilon);
  }
}

TEST(ModelConfig, ImpossibleShapesAreRefusedByField) {
  const std::vector<std::pair<Overrides, std::string>> cases = {
      {{"model.layers=0"}, "model.layers"},
      {{"model.layers=5000"}, "5000"},
      {{"model.layers=4294967295"}, "model.layers"},
      {{"model.hidden=0"}, "model.hidden"},
      {{"model.hidden=4294967295"}, "model.hidden"},
      {{"model.ffn=0"}, "model.ffn"},
      {{"model.heads=0"}, "model.heads"},
      {{"model.heads=5"}, "model.heads"},
      {{"model.kv_heads=3"}, "model.kv_heads"},
      {{"model.kv_heads=8"}, "model.kv_heads"},
      {{"model.vocab=1"}, "model.vocab"},
      {{"model.context=0"}, "model.context"},
      {{"model.head_dim=7"}, "model.head_dim"},
      {{"model.head_dim=1"}, "model.head_dim"},
      {{"model.heads=32"}, "model.head_dim"},
      {{"model.rope_theta=-1"}, "model.rope_theta"},
      {{"model.rope_theta=nan"}, "model.rope_theta"},
      {{"model.norm_epsilon=inf"}, "model.norm_epsilon"},
      {{"model.norm_epsilon=1e300"}, "model.norm_epsilon"},
      {{"model.norm_epsilon=1e-300"}, "model.norm_epsilon"},
      {{"model.initializer_range=-0.1"}, "model.initializer_range"},
      {{"model.kv_map=0_9_2_3"}, "layer 1"},
      {{"model.kv_map=yoco"}, "window"},
      {{"model.rope_scaling.kind=LINEAR"}, "rope_scaling.factor"},
      {{"model.rope_scaling.kind=LLAMA3", "model.rope_scaling.factor=2"}, "low_frequency_factor"},
      {{"model.rope_scaling.kind=9"}, "NONE, LINEAR"},
      {{"model.rope_scaling.kind=DYNAMIC", "model.rope_scaling.factor=2", "model.head_dim=2"}, "model.head_dim"},
      {{"model.rope_scaling.kind=YARN", "model.rope_scaling.factor=2", "model.rope_theta=1"}, "model.rope_theta"},
      {{"model.heads=16777216", "model.head_dim=16777216"}, "model."},
      {{"model.hidden=16777216", "model.ffn=16777216", "model.layers=4096"}, "parameters"},
  };
  for (const auto& [overrides, field] : cases) EXPECT_THAT(refusal(overrides), HasSubstr(field)) << overrides[0];
}

}  // namespace
}  // namespace kvloom
