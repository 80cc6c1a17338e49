#include "kernels/rms_norm.h"

#include "tests/support/kernel_rows.h"

namespace kvloom {
namespace {

using test::Doubles;
using test::Random;
using test::Rows;

constexpr double kEpsilon = 1e-5;

Doubles reference_row(const Doubles& input, const Doubles& gain) {
  double square = 0;
  for (const double x : input) square += x * x;
  const double scale = 1 / std::sqrt(square / static_cast<double>(input.size()) + kEpsilon);
  Doubles output(input.size());
  for (std::size_t c = 0; c < input.size(); ++c) output[c] = input[c] * scale * gain[c];
  return output;
}

template <typename T>
struct Problem {
  Problem(std::int64_t rows, std::int64_t columns, std::int64_t gap, Random& random)
      : input(rows, columns, columns + gap),
        output(rows, columns, columns + 2 * gap),
        grad_output(rows, columns),
        grad_input(rows, columns, columns + 3 * gap),
        gain(random.normals(static_cast<std::size_t>(columns))),
        inverse_rms(static_cast<std::size_t>(rows)),
        grad_gain(random.normals(static_cast<std::size_t>(columns))) {
    input.randomise(random, random.real(0.1, 4));
    grad_output.randomise(random);
    grad_input.randomise(random);
  }
  RmsNormForward forward() {
    return {input.data.data(), gain.data(),     output.data.data(), inverse_rms.data(), input.rows,
            input.columns,     float{kEpsilon}, DTypeOf<T>::value,  input.stride,       output.stride};
  }
  RmsNormBackward backward(bool accumulate) {
    return {input.data.data(),
            gain.data(),
            inverse_rms.data(),
            grad_output.data.data(),
            grad_input.data.data(),
            grad_gain.data(),
            input.rows,
            input.columns,
            accumulate,
            DTypeOf<T>::value,
            input.stride,
            grad_input.stride};
  }
  Doubles row(const Rows<T>& from, std::int64_t r) const {
    Doubles values;
    for (std::int64_t c = 0; c < from.columns; ++c) values.push_back(from(r, c));
    return values;
  }
  Doubles expected_output() const {
    Doubles expected;
    for (std::int64_t r = 0; r < input.rows; ++r) {
      for (const double y : reference_row(row(input, r), test::doubles(gain))) expected.push_back(y);
    }
    return expected;
  }

  Rows<T> input, output, grad_output, grad_input;
  std::vector<float> gain, inverse_rms, grad_gain;
};

template <typename T>
class RmsNorm : public ::testing::Test {};
TYPED_TEST_SUITE(RmsNorm, test::ComputeTypes);

TYPED_TEST(RmsNorm, AgreesWithDoublesOnAnyShapeAndStride) {
  Random random;
  for (int trial = 0; trial < 30; ++trial) {
    Problem<TypeParam> problem(random.integer(0, 9), random.integer(1, 70), random.integer(0, 5), random);
    cpu::run(problem.forward());
    test::expect_close(problem.output.dense(), problem.expected_output(), test::rounding_of<TypeParam>(), "output");
    problem.output.expect_gaps_untouched();
  }
}

TYPED_TEST(RmsNorm, WritesOverItsInputAndNeedsNoPlaceForTheScale) {
  Random random;
  Problem<TypeParam> problem(7, 33, 2, random);
  const Doubles expected = problem.expected_output();
  auto op = problem.forward();
  op.output = problem.input.data.data();
  op.output_stride = op.input_stride;
  op.inverse_rms = nullptr;
  cpu::run(op);
  test::expect_close(problem.input.dense(), expected, test::rounding_of<TypeParam>(), "output");
}

TYPED_TEST(RmsNorm, NormalisesTheSumWithAResidualWithTheBitsOfAddingBefore) {
  Random random;
  for (int trial = 0; trial < 10; ++trial) {
    Problem<TypeParam> problem(random.integer(1, 9), random.integer(1, 70), random.integer(0, 5), random);
    Rows<TypeParam> addend(problem.input.rows, problem.input.columns);
    addend.randomise(random);
    Rows<TypeParam> sum = addend;
    auto op = problem.forward();
    op.addend = addend.data.data();
    op.sum = (trial % 2 == 0 ? sum : addend).data.data();
    const Rows<TypeParam> given = addend;
    cpu::run(op);
    const Rows<TypeParam>& written = trial % 2 == 0 ? sum : addend;
    for (std::int64_t r = 0; r < given.rows; ++r) {
      for (std::int64_t c = 0; c < given.columns; ++c) {
        const auto wanted = TypeParam(static_cast<float>(problem.input(r, c) + given(r, c)));
        ASSERT_EQ(written(r, c), test::to_double(wanted));
        problem.input.at(r, c) = wanted;
      }
    }
    const auto [fused, scales] = std::pair(problem.output.dense(), problem.inverse_rms);
    cpu::run(problem.forward());
    EXPECT_EQ(problem.output.dense(), fused);
    EXPECT_EQ(problem.inverse_rms, scales);
    test::expect_close(fused, problem.expected_output(), test::rounding_of<TypeParam>(), "output");
    problem.output.expect_gaps_untouched();
  }
}

TYPED_TEST(RmsNorm, GradientsAreSlopesAndAddToWhatIsThere) {
  Random random;
  for (const bool accumulate : {false, true}) {
    Problem<TypeParam> problem(random.integer(1, 5), random.integer(1, 40), random.integer(0, 3), random);
    const auto [rows, columns] = std::pair(problem.input.rows, problem.input.columns);
    const Doubles gain = test::doubles(problem.gain);
    Doubles expected_gain = test::doubles(problem.grad_gain);
    Doubles expected_input;
    for (std::int64_t r = 0; r < rows; ++r) {
      const Doubles input = problem.row(problem.input, r);
      const Doubles grad = problem.row(problem.grad_output, r);
      const auto loss = [&](const Doubles& x, const Doubles& g) {
        const Doubles y = reference_row(x, g);
        double sum = 0;
        for (std::size_t c = 0; c < y.size(); ++c) sum += y[c] * grad[c];
        return sum;
      };
      for (std::size_t c = 0; c < input.size(); ++c) {
        const double before = accumulate ? problem.grad_input(r, static_cast<std::int64_t>(c)) : 0;
        expected_input.push_back(before + test::slope([&](const Doubles& x) { return loss(x, gain); }, input, c));
        expected_gain[c] += test::slope([&](const Doubles& g) { return loss(input, g); }, gain, c);
      }
    }
    cpu::run(problem.forward());
    cpu::run(problem.backward(accumulate));
    // In few columns the two terms of a slope nearly cancel: along the row itself, the output hardly changes.
    double terms = 0;
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < columns; ++c) {
        const double direct = problem.grad_output(r, c) * gain[static_cast<std::size_t>(c)];
        terms = std::max(terms, std::fabs(direct) * test::to_double(problem.inverse_rms[static_cast<std::size_t>(r)]));
      }
    }
    test::expect_close(problem.grad_input.dense(), expected_input, test::rounding_of<TypeParam>(), "input", terms);
    test::expect_close(test::doubles(problem.grad_gain), expected_gain, 1e-5, "gain");
    problem.grad_input.expect_gaps_untouched();
  }
}

TYPED_TEST(RmsNorm, GradientWritesOverGradientOfTheOutput) {
  Random random;
  Problem<TypeParam> problem(6, 21, 0, random);
  cpu::run(problem.forward());
  auto op = problem.backward(false);
  cpu::run(op);
  op.grad_input = problem.grad_output.data.data();
  cpu::run(op);
  EXPECT_TRUE(test::equal_bits(problem.grad_output.data, problem.grad_input.data));
}

TYPED_TEST(RmsNorm, GainGradientHasEqualBitsForAnyThreadCount) {
  Random random;
  Problem<TypeParam> problem(random.integer(700, 900), 67, 0, random);
  cpu::run(problem.forward());
  const auto start = problem.grad_gain;
  test::expect_equal_bits_for_any_thread_count([&] {
    problem.grad_gain = start;
    cpu::run(problem.backward(false));
    return problem.grad_gain;
  });
}

}  // namespace
}  // namespace kvloom
