#include "kernels/adamw.h"

#include "tests/support/kernel_rows.h"

namespace kvloom {
namespace {

using test::Doubles;
using test::Random;

struct State {
  State(std::int64_t count, Random& random)
      : weight(random.normals(static_cast<std::size_t>(count))),
        momentum(weight.size(), 0.0f),
        variance(weight.size(), 0.0f),
        copy(weight.size()) {}
  AdamW op(const std::vector<float>& gradient, std::int64_t step) {
    return {.weight = weight.data(),
            .momentum = momentum.data(),
            .variance = variance.data(),
            .gradient = gradient.data(),
            .copy = copy.data(),
            .count = static_cast<std::int64_t>(weight.size()),
            .step = step,
            .learning_rate = 1e-2f,
            .beta1 = 0.9f,
            .beta2 = 0.95f,
            .epsilon = 1e-8f,
            .weight_decay = 0.1f,
            .gradient_scale = 0.7f};
  }
  std::vector<float> weight, momentum, variance;
  std::vector<BFloat16> copy;
};

// The formula of the header, for one element.
void step_in_double(const AdamW& op, double gradient, double& weight, double& momentum, double& variance) {
  const auto wide = [](float x) { return static_cast<double>(x); };
  const double g = gradient * wide(op.gradient_scale);
  momentum = wide(op.beta1) * momentum + (1 - wide(op.beta1)) * g;
  variance = wide(op.beta2) * variance + (1 - wide(op.beta2)) * g * g;
  const double bias1 = 1 - std::pow(wide(op.beta1), op.step);
  const double bias2 = 1 - std::pow(wide(op.beta2), op.step);
  weight -= wide(op.learning_rate) *
            (momentum / bias1 / (std::sqrt(variance / bias2) + wide(op.epsilon)) + wide(op.weight_decay) * weight);
}

TEST(AdamW, FollowsTheFormulaOverSteps) {
  Random random;
  State state(random.integer(1, 100), random);
  Doubles weight = test::doubles(state.weight);
  Doubles momentum(weight.size());
  Doubles variance(weight.size());
  for (std::int64_t step = 1; step <= 20; ++step) {
    const auto gradient = random.normals(weight.size());
    const AdamW op = state.op(gradient, step);
    cpu::run(op);
    for (std::size_t i = 0; i < weight.size(); ++i) {
      step_in_double(op, test::to_double(gradient[i]), weight[i], momentum[i], variance[i]);
    }
    test::expect_close(test::doubles(state.weight), weight, 3e-6, "weight");
    test::expect_close(test::doubles(state.momentum), momentum, 3e-6, "momentum");
    test::expect_close(test::doubles(state.variance), variance, 3e-6, "variance");
  }
}

TEST(AdamW, CopyIsTheWeightRoundedAndMayBeAbsent) {
  Random random;
  State state(37, random);
  State without = state;
  const auto gradient = random.normals(37);
  cpu::run(state.op(gradient, 1));
  AdamW op = without.op(gradient, 1);
  op.copy = nullptr;
  cpu::run(op);
  EXPECT_TRUE(test::equal_bits(state.weight, without.weight));
  for (std::size_t i = 0; i < 37; ++i) EXPECT_EQ(state.copy[i].bits, BFloat16(state.weight[i]).bits);
}

// At a small rate, 1 - rate * decay is no float: the decay must not be rounded to a multiple of 2^-24.
TEST(AdamW, SmallWeightDecayIsNotBiased) {
  Random random;
  State state(20000, random);
  for (float& weight : state.weight) weight = static_cast<float>(random.real(1, 2));
  const auto before = state.weight;
  AdamW op = state.op(std::vector<float>(), 1);
  const std::vector<float> gradient(state.weight.size(), 0.0f);
  op.gradient = gradient.data();
  op.learning_rate = 1e-6f;
  op.weight_decay = 0.8f;  // 8e-7: between 13 and 14 times 2^-24
  cpu::run(op);
  double change = 0;
  double expected = 0;
  for (std::size_t i = 0; i < before.size(); ++i) {
    change += test::to_double(before[i]) - test::to_double(state.weight[i]);
    expected += test::to_double(before[i]) * 8e-7;
  }
  EXPECT_NEAR(change, expected, 2e-3 * expected);
}

TEST(AdamW, HasEqualBitsForAnyThreadCountAndAnyCut) {
  Random random;
  const State start(random.integer(30000, 40000), random);
  const auto gradient = random.normals(start.weight.size());
  const auto whole = [&] {
    State state = start;
    cpu::run(state.op(gradient, 3));
    return state.weight;
  };
  test::expect_equal_bits_for_any_thread_count(whole);
  State parts = start;
  const auto cut = random.integer(1, 29999);
  AdamW op = parts.op(gradient, 3);
  op.count = cut;
  cpu::run(op);
  op.weight += cut, op.momentum += cut, op.variance += cut, op.gradient += cut, op.copy += cut;
  op.count = static_cast<std::int64_t>(start.weight.size()) - cut;
  cpu::run(op);
  EXPECT_TRUE(test::equal_bits(parts.weight, whole()));
}

}  // namespace
}  // namespace kvloom
