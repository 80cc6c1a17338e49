// The gradient of every weight against difference quotients of an independent double-precision model.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/model_fixture.h"
#include "tests/support/sanitized.h"

namespace kvloom {
namespace {

struct Case {
  std::string map;
  int layers;
  int window;
  Passes passes;
  bool all_features;  // bias, Q/K norm, tied embeddings
  bool no_diagonal = false;

  friend std::ostream& operator<<(std::ostream& out, const Case& given) {
    return out << given.map << " m=" << given.passes.without_gradient << " b=" << given.passes.with_gradient;
  }
};

class Gradient : public ::testing::TestWithParam<Case> {};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const std::string& map : test::nine_maps()) {
    for (int b = 1; b <= 3; ++b) all.push_back({map + ":3", 6, 0, {b, b}, b == 2});
  }
  all.push_back({"0s_3s_3_5s_3_5", 6, 3, {1, 2}, false});
  all.push_back({"0_2_4_1s_4_3", 6, 2, {0, 2}, true});
  all.push_back({"yoco", 6, 3, {1, 2}, false});
  // K and V of two layers: below, above, one of each, and of one pass that carries gradient and one that does not.
  all.push_back({"fused-lite:3", 6, 0, {1, 1}, false});
  all.push_back({"0s_1s_2s_2:0_2:0_2:1s", 6, 3, {1, 2}, true});
  all.push_back({"0_4:1_5:4s_3:2_4_4:1", 6, 3, {1, 2}, true});
  all.push_back({"2:0_1:3_0:2_3:1_5_4:5", 6, 0, {0, 2}, false});
  all.push_back({"0_3:1_1:3_3_4:0_4", 6, 0, {2, 1}, true});
  // Nobody sees itself.
  all.push_back({"none", 6, 0, {1, 1}, true, true});
  all.push_back({"0_4:1_5:4s_3:2_4_4:1", 6, 3, {1, 2}, false, true});
  all.push_back({"sandwich-top:3", 6, 0, {1, 2}, true, true});
  return all;
}

void expect_gradients_match_quotients(const Case& given, test::Random& random) {
  CachingCpuAllocator allocator;
  proto::ModelConfig message = test::small_model(given.layers, given.map, given.window);
  message.set_hidden(8);
  message.set_ffn(12);
  message.set_vocab(11);
  message.set_qkv_bias(given.all_features);
  message.set_qk_norm(given.all_features);
  message.set_tied_embeddings(given.all_features);
  message.set_no_diagonal(given.no_diagonal);
  const ModelConfig config = ModelConfig::from_proto(message);
  Model model(config, DType::kF32, allocator);
  model.initialize(random.seed());
  test::disturb_vectors(model, random);

  constexpr std::int64_t kPositions = 5;
  const auto tokens = random.tokens(kPositions, config.vocab);
  const auto targets = random.tokens(kPositions, config.vocab);
  TrainingPass pass(model, given.passes, kPositions, Recompute::kNone);
  ModelGradients gradients(model);
  const double loss = pass.run(make_token_batch(model, tokens, targets, 1), 1.0f / kPositions, gradients) / kPositions;

  const test::ReferenceModel reference(config);
  const std::vector<double> frozen = test::weights_of(model);
  const std::vector<int> ids(tokens.begin(), tokens.end());
  const std::vector<int> wanted(targets.begin(), targets.end());
  const auto loss_at = [&](const std::vector<double>& weights) {
    return test::ReferenceModel::mean_loss(
        reference.iterated(weights, frozen, ids, given.passes.without_gradient, given.passes.with_gradient), wanted);
  };
  ASSERT_NEAR(loss, loss_at(frozen), 1e-5);

  constexpr double kStep = 1e-5;
  // Of a matrix, elements so far apart, from a random one: all of them, or a sample that sanitizers have time for. Of a
  // vector all, always: in a few elements of one whose sums nearly cancel, f32's rounding is no small part.
  constexpr std::int64_t kMatrixStride = test::kSanitized ? 8 : 1;
  for (const Parameter& parameter : model.layout().all()) {
    double error = 0;
    double size = 0;
    const std::int64_t count = element_count(parameter.shape);
    const std::int64_t stride = parameter.shape.size() == 1 ? 1 : kMatrixStride;
    const std::int64_t first = random.integer(0, std::min(stride, count) - 1);
#pragma omp parallel reduction(+ : error, size)
    {
      std::vector<double> weights = frozen;
#pragma omp for
      for (std::int64_t i = first; i < count; i += stride) {
        const auto at = static_cast<std::size_t>(parameter.offset + i);
        weights[at] = frozen[at] + kStep;
        const double above = loss_at(weights);
        weights[at] = frozen[at] - kStep;
        const double below = loss_at(weights);
        weights[at] = frozen[at];
        const double expected = (above - below) / (2 * kStep);
        const double actual = static_cast<double>(gradients.flat.as<float>()[at]);
        error += (actual - expected) * (actual - expected);
        size += expected * expected;
      }
    }
    EXPECT_LE(std::sqrt(error), 1e-3 * std::sqrt(size) + 1e-7) << parameter.name << " of " << given;
  }
}

TEST_P(Gradient, OfEveryWeightMatchesDifferenceQuotients) {
  if (test::kSanitized) std::puts("under a sanitizer: every 8th element of each matrix instead of all");
  test::Random random;
  expect_gradients_match_quotients(GetParam(), random);
}

TEST(RandomMapsGradient, OfEveryWeightMatchesDifferenceQuotients) {
  test::Random random;
  const int maps = test::repetitions(20, 2, "random maps");
  for (int i = 0; i < maps; ++i) {
    const int layers = static_cast<int>(random.integer(3, 5));
    const Passes passes{.without_gradient = static_cast<int>(random.integer(0, 2)),
                        .with_gradient = static_cast<int>(random.integer(1, 3))};
    expect_gradients_match_quotients({test::random_map(random, layers, true), layers,
                                      static_cast<int>(random.integer(1, 4)), passes, random.flip(), random.flip()},
                                     random);
  }
}

std::string name_of_case(const ::testing::TestParamInfo<Case>& info) {
  std::string name = (info.param.no_diagonal ? "strict_" : "") + info.param.map + "_m" +
                     std::to_string(info.param.passes.without_gradient) + "_b" +
                     std::to_string(info.param.passes.with_gradient);
  for (char& c : name) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
  }
  return name;
}

INSTANTIATE_TEST_SUITE_P(Maps, Gradient, ::testing::ValuesIn(cases()), name_of_case);

}  // namespace
}  // namespace kvloom
