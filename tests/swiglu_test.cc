#include "kernels/swiglu.h"

#include "tests/support/kernel_rows.h"

namespace kvloom {
namespace {

using test::Doubles;
using test::Random;
using test::Rows;

double gated(double gate, double up) { return gate / (1 + std::exp(-gate)) * up; }

template <typename T>
struct Problem {
  Problem(std::int64_t rows, std::int64_t columns, Random& random)
      : gate_up(rows, 2 * columns), output(rows, columns), grad_output(rows, columns), grad_gate_up(rows, 2 * columns) {
    gate_up.randomise(random, 4);
    grad_output.randomise(random);
  }
  SwigluForward forward() {
    return {gate_up.data.data(), output.data.data(), output.rows, output.columns, DTypeOf<T>::value};
  }
  SwigluBackward backward() {
    return {gate_up.data.data(), grad_output.data.data(), grad_gate_up.data.data(),
            output.rows,         output.columns,          DTypeOf<T>::value};
  }
  double gate(std::int64_t r, std::int64_t c) const { return gate_up(r, c); }
  double up(std::int64_t r, std::int64_t c) const { return gate_up(r, output.columns + c); }

  Rows<T> gate_up, output, grad_output, grad_gate_up;
};

template <typename T>
class Swiglu : public ::testing::Test {};
TYPED_TEST_SUITE(Swiglu, test::ComputeTypes);

TYPED_TEST(Swiglu, AgreesWithDoublesOnAnyShape) {
  Random random;
  for (int trial = 0; trial < 30; ++trial) {
    Problem<TypeParam> problem(random.integer(0, 6), random.integer(1, 70), random);
    cpu::run(problem.forward());
    Doubles expected;
    for (std::int64_t r = 0; r < problem.output.rows; ++r) {
      for (std::int64_t c = 0; c < problem.output.columns; ++c) {
        expected.push_back(gated(problem.gate(r, c), problem.up(r, c)));
      }
    }
    test::expect_close(problem.output.dense(), expected, test::rounding_of<TypeParam>(), "output");
  }
}

TYPED_TEST(Swiglu, GradientsAreSlopes) {
  Random random;
  for (int trial = 0; trial < 10; ++trial) {
    Problem<TypeParam> problem(random.integer(1, 6), random.integer(1, 70), random);
    const std::int64_t columns = problem.output.columns;
    cpu::run(problem.backward());
    Doubles expected;
    for (std::int64_t r = 0; r < problem.output.rows; ++r) {
      for (std::int64_t c = 0; c < 2 * columns; ++c) {
        const Doubles at{problem.gate(r, c % columns), problem.up(r, c % columns)};
        const auto loss = [](const Doubles& x) { return gated(x[0], x[1]); };
        expected.push_back(problem.grad_output(r, c % columns) * test::slope(loss, at, c < columns ? 0 : 1));
      }
    }
    test::expect_close(problem.grad_gate_up.dense(), expected, test::rounding_of<TypeParam>(), "gradient");
  }
}

TYPED_TEST(Swiglu, GradientWritesOverGateAndUp) {
  Random random;
  Problem<TypeParam> problem(5, 37, random);
  auto op = problem.backward();
  cpu::run(op);
  op.grad_gate_up = problem.gate_up.data.data();
  cpu::run(op);
  EXPECT_TRUE(test::equal_bits(problem.gate_up.data, problem.grad_gate_up.data));
}

TYPED_TEST(Swiglu, StaysFiniteForAnyGate) {
  Random random;
  Problem<TypeParam> problem(1, 4, random);
  const std::vector<float> gates{-3e4f, -100.0f, 100.0f, 3e4f};
  for (std::int64_t c = 0; c < 4; ++c) {
    problem.gate_up.at(0, c) = TypeParam(gates[static_cast<std::size_t>(c)]);
    problem.gate_up.at(0, 4 + c) = TypeParam(1.0f);
    problem.grad_output.at(0, c) = TypeParam(1.0f);
  }
  cpu::run(problem.forward());
  cpu::run(problem.backward());
  for (std::int64_t c = 0; c < 4; ++c) {
    const double gate = problem.gate(0, c);
    EXPECT_NEAR(problem.output(0, c), gate > 0 ? gate : 0, 1e-30 + 1e-5 * std::fmax(gate, 0)) << gate;
    EXPECT_NEAR(problem.grad_gate_up(0, c), gate > 0 ? 1 : 0, 1e-6) << gate;
  }
}

}  // namespace
}  // namespace kvloom
