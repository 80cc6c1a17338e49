// Angles of rotary embedding follow from the model alone.
#include "core/rope_table.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "core/decoder.h"
#include "tests/support/random.h"

namespace kvloom {
namespace {

constexpr std::int64_t kContext = 32;
constexpr std::uint32_t kOriginal = 8;

proto::ModelConfig model_with(proto::RopeScaling::Kind kind) {
  proto::ModelConfig model;
  model.set_layers(4);
  model.set_hidden(32);
  model.set_ffn(48);
  model.set_heads(4);
  model.set_kv_heads(2);
  model.set_vocab(50);
  model.set_context(kContext);
  model.set_kv_map("sandwich-top:3");
  proto::RopeScaling& scaling = *model.mutable_rope_scaling();
  scaling.set_kind(kind);
  scaling.set_factor(3);
  scaling.set_original_context(kOriginal);
  scaling.set_low_frequency_factor(1);
  scaling.set_high_frequency_factor(4);
  return model;
}

TEST(RopeTable, APositionsAnglesAreTheSameInATableOfAnyLength) {
  test::Random random;
  CachingCpuAllocator allocator;
  for (int kind = proto::RopeScaling::Kind_MIN; kind <= proto::RopeScaling::Kind_MAX; ++kind) {
    const ModelConfig config = ModelConfig::from_proto(model_with(static_cast<proto::RopeScaling::Kind>(kind)));
    const RopeTable longest = make_rope_table(config, 2 * kContext, allocator);
    const RopeTable other = make_rope_table(config, random.integer(1, 2 * kContext - 1), allocator);
    const auto is_beginning = [](const Tensor& part, const Tensor& whole) {
      return std::ranges::equal(part.as<float>(), whole.as<float>().first(part.as<float>().size()));
    };
    EXPECT_TRUE(is_beginning(other.cosine, longest.cosine)) << kind;
    EXPECT_TRUE(is_beginning(other.sine, longest.sine)) << kind;
  }
}

// `transformers` 5, _compute_dynamic_ntk_parameters, for a sequence as long as the context.
TEST(RopeTable, DynamicScalingIsThatOfASequenceOfTheWholeContext) {
  CachingCpuAllocator allocator;
  const ModelConfig config = ModelConfig::from_proto(model_with(proto::RopeScaling::DYNAMIC));
  const RopeTable table = make_rope_table(config, kContext, allocator);
  const double dim = 8;
  const double base = 10000 * std::pow(3.0 * kContext / kOriginal - 2.0, dim / (dim - 2));
  for (std::int64_t position = 0; position < kContext; ++position) {
    for (std::int64_t pair = 0; pair < 4; ++pair) {
      const double angle = static_cast<double>(position) / std::pow(base, 2.0 * static_cast<double>(pair) / dim);
      const auto at = static_cast<std::size_t>(position * 4 + pair);
      EXPECT_NEAR(table.cosine.as<float>()[at], std::cos(angle), 1e-6);
      EXPECT_NEAR(table.sine.as<float>()[at], std::sin(angle), 1e-6);
    }
  }
}

// As a user sees it: how many tokens may come must not change those that do.
TEST(RopeTable, ADecodersRoomChangesNoLogit) {
  test::Random random;
  CachingCpuAllocator allocator;
  for (int kind = proto::RopeScaling::Kind_MIN; kind <= proto::RopeScaling::Kind_MAX; ++kind) {
    Model model(ModelConfig::from_proto(model_with(static_cast<proto::RopeScaling::Kind>(kind))), DType::kF32,
                allocator);
    model.initialize(random.seed());
    std::vector<std::int32_t> prompt;
    for (int i = 0; i < 12; ++i) prompt.push_back(static_cast<std::int32_t>(random.integer(0, 49)));
    const Tensor tokens = Tensor::of<std::int32_t>(allocator, {12}, prompt);
    std::vector<std::vector<float>> logits;
    for (const std::int64_t capacity : {std::int64_t{12}, std::int64_t{20}, kContext}) {
      Decoder decoder(model, 1, capacity);
      const Tensor last = decoder.prefill(tokens, {.passes = {2, 2}, .tolerance = 0});
      logits.emplace_back(last.as<float>().begin(), last.as<float>().end());
    }
    EXPECT_EQ(logits[0], logits[1]) << kind;
    EXPECT_EQ(logits[0], logits[2]) << kind;
  }
}

}  // namespace
}  // namespace kvloom
