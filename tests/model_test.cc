// What the model computes: parallel passes, prefill, decode and an independent double-precision model must agree.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/decoder.h"
#include "core/head.h"
#include "tests/support/model_fixture.h"
#include "tests/support/sanitized.h"

namespace kvloom {
namespace {

constexpr double kTolerance = 1e-4;

// Every third model hides the diagonal.
proto::ModelConfig model_of(int layers, const std::string& map, test::Random& random) {
  proto::ModelConfig message = test::small_model(layers, map, 3);
  message.set_no_diagonal(random.integer(0, 2) == 0);
  return message;
}

struct Built {
  explicit Built(const proto::ModelConfig& message, test::Random& random, DType dtype = DType::kF32)
      : model(ModelConfig::from_proto(message), dtype, allocator) {
    model.initialize(random.seed());
    test::disturb_vectors(model, random);
  }

  Tensor token_tensor(const std::vector<std::int32_t>& tokens) {
    Tensor tensor = Tensor::empty(allocator, {static_cast<std::int64_t>(tokens.size())}, DType::kI32);
    std::ranges::copy(tokens, tensor.as<std::int32_t>().begin());
    return tensor;
  }

  // Logits [sequences][position][vocab], token by token.
  Tensor sequential(const std::vector<std::int32_t>& tokens, std::int64_t sequences) {
    const auto positions = static_cast<std::int64_t>(tokens.size()) / sequences;
    const std::int64_t vocab = model.config().vocab;
    Decoder decoder(model, sequences, positions);
    Tensor logits = Tensor::empty(allocator, {sequences * positions, vocab}, DType::kF32);
    for (std::int64_t t = 0; t < positions; ++t) {
      std::vector<std::int32_t> now;
      for (std::int64_t s = 0; s < sequences; ++s) now.push_back(tokens[static_cast<std::size_t>(s * positions + t)]);
      const Tensor step = decoder.step(token_tensor(now));
      for (std::int64_t s = 0; s < sequences; ++s) {
        Tensor row = logits.rows(s * positions + t, s * positions + t + 1);
        ops::copy(step.rows(s, s + 1), row);
      }
    }
    return logits;
  }

  CachingCpuAllocator allocator;
  Model model;
};

// Of the root mean square of what is expected.
struct Difference {
  double mean;  // root mean square of the differences
  double most;
};

Difference difference_of(const Tensor& actual, const Tensor& expected) {
  const auto got = actual.as<float>();
  const auto wanted = expected.as<float>();
  double squares = 0;
  double size = 0;
  double most = 0;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    const double difference = std::fabs(static_cast<double>(got[i]) - static_cast<double>(wanted[i]));
    most = std::max(most, std::isnan(difference) ? std::numeric_limits<double>::infinity() : difference);
    squares += difference * difference;
    size += static_cast<double>(wanted[i]) * static_cast<double>(wanted[i]);
  }
  return {std::sqrt(squares / size), most / std::sqrt(size / static_cast<double>(wanted.size()))};
}

void expect_close(const Tensor& actual, const Tensor& expected, double tolerance, const std::string& what) {
  ASSERT_EQ(actual.count(), expected.count()) << what;
  EXPECT_LE(difference_of(actual, expected).most, tolerance) << what;
}

// Every named map at several l, every preset, windowed ones, and random maps.
std::vector<std::string> maps_for(int layers, test::Random& random) {
  std::vector<std::string> maps;
  for (const std::string& name : test::nine_maps()) {
    for (const int l : {3, 1, 2, layers}) {
      maps.push_back(name + ":" + std::to_string(l));
      if (test::kSanitized) break;
    }
  }
  for (const char* partition : {"pizza", "sandwich", "lasagna"}) {
    for (const char* position : {"quarter", "three-quarter"}) {
      maps.push_back(std::string(partition) + "-" + position + ":2");
    }
  }
  for (const char* preset :
       {"none", "cla:2", "cla:3", "yoco", "yoco:2", "lckv:2", "mlkv:2", "last-shared:3", "fused-lite:3"}) {
    maps.emplace_back(preset);
  }
  if (layers == 6) maps.insert(maps.end(), {"0s_1s_2s_2:0_2:0_2:0s", "0_3:0_1:2s_3:5_4:0_5"});
  const int random_maps = test::repetitions(60, 6, "random maps, and named maps at l = 3 alone,");
  for (int i = 0; i < random_maps; ++i) maps.push_back(test::random_map(random, layers, i % 2 == 0));
  return maps;
}

class EveryMap : public ::testing::TestWithParam<int> {};

TEST_P(EveryMap, ParallelWithEnoughPassesEqualsSequential) {
  test::Random random;
  for (const std::string& map : maps_for(GetParam(), random)) {
    Built built(model_of(GetParam(), map, random), random);
    const std::int64_t positions = random.integer(1, 9);
    const std::int64_t sequences = random.integer(1, 3);
    const auto tokens = random.tokens(static_cast<std::size_t>(sequences * positions), built.model.config().vocab);
    Decoder decoder(built.model, sequences, positions);
    const Tensor parallel = decoder.prefill(
        built.token_tensor(tokens),
        {.passes = {.without_gradient = static_cast<int>(positions), .with_gradient = 2}, .asked = positions});
    expect_close(parallel, built.sequential(tokens, sequences), kTolerance, map);
  }
}

TEST_P(EveryMap, PrefillThenDecodeEqualsSequential) {
  test::Random random;
  for (const std::string& map : maps_for(GetParam(), random)) {
    Built built(model_of(GetParam(), map, random), random);
    const std::int64_t prompt = random.integer(1, 8);
    const std::int64_t positions = prompt + 4;
    const auto tokens = random.tokens(static_cast<std::size_t>(positions), built.model.config().vocab);
    const Tensor expected = built.sequential(tokens, 1);
    Decoder decoder(built.model, 1, positions);
    const std::int64_t asked = random.integer(1, prompt);
    const std::vector<std::int32_t> first(tokens.begin(), tokens.begin() + prompt);
    const Tensor logits =
        decoder.prefill(built.token_tensor(first),
                        {.passes = {.without_gradient = static_cast<int>(prompt), .with_gradient = 0}, .asked = asked});
    expect_close(logits, expected.rows(prompt - asked, prompt), kTolerance, map + " prefill");
    for (std::int64_t t = prompt; t < positions; ++t) {
      expect_close(decoder.step(built.token_tensor({tokens[static_cast<std::size_t>(t)]})), expected.rows(t, t + 1),
                   kTolerance, map + " decode");
    }
  }
}

TEST_P(EveryMap, WithFewerPassesTheFirstPositionsAreExact) {
  test::Random random;
  for (const std::string& map : maps_for(GetParam(), random)) {
    Built built(model_of(GetParam(), map, random), random);
    constexpr std::int64_t kPositions = 9;
    const int passes = static_cast<int>(random.integer(1, kPositions - 1));
    const auto tokens = random.tokens(kPositions, built.model.config().vocab);
    Decoder decoder(built.model, 1, kPositions);
    const Tensor parallel = decoder.prefill(
        built.token_tensor(tokens), {.passes = {.without_gradient = passes, .with_gradient = 0}, .asked = kPositions});
    // One segment is exact below its number of passes; with several, each starts from an input exact that far.
    expect_close(parallel.rows(0, passes), built.sequential(tokens, 1).rows(0, passes), kTolerance, map);
  }
}

TEST_P(EveryMap, SequentialDecodeEqualsTheDoublePrecisionModel) {
  test::Random random;
  for (const std::string& map : maps_for(GetParam(), random)) {
    proto::ModelConfig message = model_of(GetParam(), map, random);
    message.set_qkv_bias(random.flip());
    message.set_qk_norm(random.flip());
    message.set_tied_embeddings(random.flip());
    Built built(message, random);
    const auto tokens = random.tokens(8, built.model.config().vocab);
    const test::ReferenceModel reference(built.model.config());
    const test::Rows expected =
        reference.sequential(test::weights_of(built.model), std::vector<int>(tokens.begin(), tokens.end()));
    Tensor rows = Tensor::empty(built.allocator, {8, built.model.config().vocab}, DType::kF32);
    for (std::size_t t = 0; t < 8; ++t) {
      std::ranges::transform(
          expected[t], rows.rows(static_cast<std::int64_t>(t), static_cast<std::int64_t>(t) + 1).as<float>().begin(),
          [](double value) { return static_cast<float>(value); });
    }
    expect_close(built.sequential(tokens, 1), rows, kTolerance, map);
  }
}

INSTANTIATE_TEST_SUITE_P(Layers, EveryMap, ::testing::Values(6, 7));

// The first token of a model without diagonal sees nothing in any layer: its attention is zero, whatever W_V is.
TEST(Model, WithoutDiagonalTheFirstPositionAttendsToNothing) {
  test::Random random;
  proto::ModelConfig message = test::small_model(6, "0_1_1_3:0_4_4:5");
  message.set_no_diagonal(true);
  Built built(message, random);
  const std::vector<std::int32_t> tokens = random.tokens(3, message.vocab());
  const auto first = built.sequential(tokens, 1).rows(0, 1).values<float>();
  for (const Parameter& parameter : built.model.layout().all()) {
    if (parameter.name.find("v_proj") == std::string::npos && parameter.name.find("q_proj") == std::string::npos)
      continue;
    Tensor values = built.model.master().view(parameter.offset, parameter.shape);
    for (float& value : values.as<float>()) value += 1.0f;
  }
  built.model.refresh();
  const Tensor changed = built.sequential(tokens, 1);
  EXPECT_EQ(changed.rows(0, 1).values<float>(), first);
  EXPECT_NE(changed.rows(1, 2).values<float>(), first);
}

TEST(Model, EarlyStopGivesWhatAllPassesGive) {
  test::Random random;
  Built built(test::small_model(6, "sandwich-middle:3"), random);
  const auto tokens = random.tokens(32, built.model.config().vocab);
  Decoder patient(built.model, 1, 32);
  Decoder eager(built.model, 1, 32);
  const Passes passes{.without_gradient = 32, .with_gradient = 0};
  const Tensor expected = patient.prefill(built.token_tensor(tokens), {.passes = passes, .asked = 32});
  const Tensor actual = eager.prefill(built.token_tensor(tokens), {.passes = passes, .tolerance = 1e-6f, .asked = 32});
  EXPECT_LT(eager.prefill_passes(), patient.prefill_passes());
  expect_close(actual, expected, kTolerance, "early stop");
}

// Of bf16 logits against f32 ones. Rounding to bf16 errs by 2^-8 of a value at most. On the way to a logit the hidden
// state is rounded as an embedding, twice a layer and by the last norm, and the head's weights once. Independent errors
// of that size add up as their squares do. They are 0.4 of it on average, which leaves room for what branches round.
// A logit's error is a sum of many, near to normal: it reaches six deviations once in 5e8.
Difference bound_of_bf16(int layers) {
  const double roundings = 2 * layers + 3;
  const double mean = std::ldexp(1.0, -8) * std::sqrt(roundings);
  return {.mean = mean, .most = 6 * mean};
}

TEST(Model, BFloat16FollowsF32) {
  test::Random random;
  for (const char* map : {"none", "sandwich-top:3", "0s_3s_3_5s_3_5", "0_3:0_1:2s_3:5_4:0_5"}) {
    proto::ModelConfig message = test::small_model(6, map, 3);
    message.set_initializer_range(0.1);
    const std::uint64_t seed = random.seed();
    CachingCpuAllocator allocator;
    Model exact(ModelConfig::from_proto(message), DType::kF32, allocator);
    Model rounded(ModelConfig::from_proto(message), DType::kBF16, allocator);
    exact.initialize(seed);
    rounded.initialize(seed);
    const auto tokens = random.tokens(12, message.vocab());
    Tensor input = Tensor::empty(allocator, {12}, DType::kI32);
    std::ranges::copy(tokens, input.as<std::int32_t>().begin());
    Decoder a(exact, 1, 12);
    Decoder b(rounded, 1, 12);
    const PrefillOptions options{.passes = {.without_gradient = 3, .with_gradient = 1}, .asked = 12};
    const Difference difference = difference_of(b.prefill(input, options), a.prefill(input, options));
    const Difference bound = bound_of_bf16(exact.config().layers);
    EXPECT_LE(difference.mean, bound.mean) << map;
    EXPECT_LE(difference.most, bound.most) << map;
  }
}

TEST(Training, RecomputeGivesEqualBits) {
  test::Random random;
  for (const char* map : {"none", "sandwich-top:3", "lasagna-middle:3", "0s_3s_3_5s_3_5", "0_3:0_1:2s_3:5_4:0_5"}) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      proto::ModelConfig message = test::small_model(6, map, 3);
      message.set_qk_norm(true);
      message.set_qkv_bias(true);
      Built built(message, random, dtype);
      const auto tokens = random.tokens(16, message.vocab());
      const auto targets = random.tokens(16, message.vocab());
      const TokenBatch batch = make_token_batch(built.model, tokens, targets, 2);
      ModelGradients kept(built.model);
      ModelGradients recomputed(built.model);
      const Passes passes{.without_gradient = 2, .with_gradient = 2};
      const double a = TrainingPass(built.model, passes, 8, Recompute::kNone).run(batch, 0.1f, kept);
      const double b = TrainingPass(built.model, passes, 8, Recompute::kFull).run(batch, 0.1f, recomputed);
      EXPECT_EQ(a, b);
      EXPECT_TRUE(std::ranges::equal(kept.flat.as<float>(), recomputed.flat.as<float>())) << map;
    }
  }
}

TEST(Training, BFloat16GradientsFollowF32) {
  test::Random random;
  for (const char* map : {"none", "sandwich-middle:3", "pizza-top:2"}) {
    proto::ModelConfig message = test::small_model(6, map);
    message.set_initializer_range(0.1);
    CachingCpuAllocator allocator;
    const auto tokens = random.tokens(32, message.vocab());
    const auto targets = random.tokens(32, message.vocab());
    std::vector<std::vector<float>> found;
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      Model model(ModelConfig::from_proto(message), dtype, allocator);
      model.initialize(7);
      ModelGradients gradients(model);
      TrainingPass(model, {.without_gradient = 2, .with_gradient = 2}, 16, Recompute::kNone)
          .run(make_token_batch(model, tokens, targets, 2), 1.0f / 32, gradients);
      const auto values = gradients.flat.as<float>();
      found.emplace_back(values.begin(), values.end());
    }
    double error = 0;
    double size = 0;
    for (std::size_t i = 0; i < found[0].size(); ++i) {
      error += std::pow(found[0][i] - found[1][i], 2);
      size += std::pow(found[0][i], 2);
    }
    EXPECT_LE(std::sqrt(error), 2e-2 * std::sqrt(size)) << map;
  }
}

TEST(Training, GradientsAccumulateOverBatches) {
  test::Random random;
  Built built(test::small_model(6, "sandwich-middle:3"), random);
  const auto tokens = random.tokens(16, 29);
  const auto targets = random.tokens(16, 29);
  const std::span<const std::int32_t> all_tokens(tokens);
  const std::span<const std::int32_t> all_targets(targets);
  TrainingPass pass(built.model, {.without_gradient = 1, .with_gradient = 2}, 8, Recompute::kNone);
  ModelGradients together(built.model);
  ModelGradients apart(built.model);
  pass.run(make_token_batch(built.model, tokens, targets, 2), 1, together);
  for (std::size_t half = 0; half < 2; ++half) {
    pass.run(make_token_batch(built.model, all_tokens.subspan(8 * half, 8), all_targets.subspan(8 * half, 8), 1), 1,
             apart);
  }
  expect_close(apart.flat, together.flat, kTolerance, "gradients");
}

TEST(KvGradientStore, ASourceRefusesToGoOnWhileAReaderIsMissing) {
  CachingCpuAllocator allocator;
  KvGradientStore store(allocator);
  store.add_reader({KvPart::kKey, 4, 1}, {1, 2, 3});
  try {
    store.take({KvPart::kKey, 4, 1}, 2);
    FAIL() << "a missing reader went unnoticed";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "kv gradient: K of layer 4 in pass 1 has 1 readers' gradients, 2 expected");
  }
}

}  // namespace
}  // namespace kvloom
