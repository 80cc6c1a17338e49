// Angles of rotary embedding follow from the model alone.
#include "core/rope_table.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

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

// Radians a position of each pair, in the words of `transformers` 5 (modeling_rope_utils.py) and, for YaRN, of Peng et
// al. 2023, section 3.
std::vector<double> frequencies_of(const proto::RopeScaling& scaling, double theta, double dim, double context) {
  const double original = scaling.original_context() > 0 ? scaling.original_context() : context;
  const double factor = scaling.factor();
  if (scaling.kind() == proto::RopeScaling::DYNAMIC && context > original) {
    theta *= std::pow(factor * context / original - (factor - 1), dim / (dim - 2));
  }
  std::vector<double> frequencies;
  for (double pair = 0; pair < dim / 2; ++pair) {
    const double plain = 1 / std::pow(theta, 2 * pair / dim);
    const double wavelength = 2 * std::numbers::pi / plain;
    double share_kept = 1;
    if (scaling.kind() == proto::RopeScaling::LINEAR) share_kept = 0;
    if (scaling.kind() == proto::RopeScaling::LLAMA3) {
      const double low = scaling.low_frequency_factor();
      const double high = scaling.high_frequency_factor();
      share_kept = wavelength > original / low    ? 0
                   : wavelength < original / high ? 1
                                                  : (original / wavelength - low) / (high - low);
    }
    if (scaling.kind() == proto::RopeScaling::YARN) {
      const auto pair_that_turns = [&](double times) {
        return dim * std::log(original / (times * 2 * std::numbers::pi)) / (2 * std::log(theta));
      };
      const double first = std::max(std::floor(pair_that_turns(scaling.beta_fast())), 0.0);
      const double last = std::min(std::ceil(pair_that_turns(scaling.beta_slow())), dim - 1);
      share_kept = 1 - std::clamp((pair - first) / (first == last ? 0.001 : last - first), 0.0, 1.0);
    }
    const bool scaled = scaling.kind() != proto::RopeScaling::NONE && scaling.kind() != proto::RopeScaling::DYNAMIC;
    frequencies.push_back(scaled ? share_kept * plain + (1 - share_kept) * plain / factor : plain);
  }
  return frequencies;
}

TEST(RopeTable, OfEveryKindIsThatOfItsFormulaInContextsAboveAndBelowTheOriginal) {
  test::Random random;
  CachingCpuAllocator allocator;
  for (int round = 0; round < 20; ++round) {
    for (int kind = proto::RopeScaling::Kind_MIN; kind <= proto::RopeScaling::Kind_MAX; ++kind) {
      proto::ModelConfig message = model_with(static_cast<proto::RopeScaling::Kind>(kind));
      const std::int64_t dim = 4 << random.integer(0, 3);
      message.set_head_dim(static_cast<std::uint32_t>(dim));
      message.set_rope_theta(random.real(50, 20000));
      proto::RopeScaling& scaling = *message.mutable_rope_scaling();
      scaling.set_factor(random.real(1, 8));
      scaling.set_original_context(static_cast<std::uint32_t>(kContext * (round % 2 == 0 ? 4 : 1) / 2));
      scaling.set_beta_fast(random.real(1, 32));
      scaling.set_beta_slow(random.real(0.1, 0.9));
      if (random.flip() && kind == proto::RopeScaling::YARN) scaling.set_attention_factor(random.real(0.5, 2));
      SCOPED_TRACE(message.ShortDebugString());
      const ModelConfig config = ModelConfig::from_proto(message);
      const RopeTable table = make_rope_table(config, kContext, allocator);
      const auto frequencies = frequencies_of(scaling, message.rope_theta(), static_cast<double>(dim), kContext);
      double size = 1;
      if (kind == proto::RopeScaling::YARN) {
        size = scaling.attention_factor() > 0 ? scaling.attention_factor() : 0.1 * std::log(scaling.factor()) + 1;
      }
      ASSERT_EQ(table.cosine.as<float>().size(), frequencies.size() * kContext);
      for (std::size_t at = 0; at < table.cosine.as<float>().size(); ++at) {
        const double angle = static_cast<double>(at / frequencies.size()) * frequencies[at % frequencies.size()];
        ASSERT_NEAR(table.cosine.as<float>()[at], size * std::cos(angle), 1e-6) << at;
        ASSERT_NEAR(table.sine.as<float>()[at], size * std::sin(angle), 1e-6) << at;
      }
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
