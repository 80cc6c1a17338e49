// Matrix products on a GPU and what goes with them: a layer's bias, the bias's gradient, tf32. Run with the kernels
// compiled for the host as well (simt_cuda_matmul_test), where plain loops stand for cuBLASLt and refuse what it may
// not be given.
#include <cmath>

#include "kernels/matmul.h"
#include "tests/support/gpu.h"
#include "tests/support/kernel_rows.h"
#include "tests/support/reference_matmul.h"

namespace kvloom {
namespace {

using test::Doubles;
using test::Mirror;
using test::Random;
using test::Rows;

template <typename T>
std::vector<T> sizes_of(std::vector<T> values) {
  for (T& value : values) value = T(std::fabs(static_cast<float>(value)));
  return values;
}

class CudaMatmul : public test::GpuTest {
 protected:
  // c = a b^T + bias, of rows with gaps or without: within `rounding` of the sum of its terms' sizes. The bias lies
  // `bias_offset` elements behind an address of 16 bytes.
  template <typename From, typename To>
  void expect_bias(Random& random, std::int64_t gap, double rounding, std::int64_t bias_offset = 0) {
    const std::int64_t rows = random.integer(1, 70);
    const std::int64_t columns = random.integer(1, 70);
    const std::int64_t inner = random.integer(0, 9) == 0 ? 0 : random.integer(1, 70);
    Rows<From> a(rows, inner, inner + gap);
    Rows<From> b(columns, inner, inner + gap);
    Rows<To> c(rows, columns, columns + gap);
    a.randomise(random);
    b.randomise(random);
    const std::vector<float> bias_memory = random.normals(static_cast<std::size_t>(bias_offset + columns));
    const float* bias = bias_memory.data() + bias_offset;
    Matmul op{.a = a.data.data(),
              .b = b.data.data(),
              .c = nullptr,
              .rows = rows,
              .columns = columns,
              .inner = inner,
              .transpose_b = Transpose::kYes,
              .operand_dtype = DTypeOf<From>::value,
              .output_dtype = DTypeOf<To>::value,
              .a_stride = a.stride,
              .b_stride = b.stride,
              .c_stride = c.stride};
    const Doubles product = reference::multiply(op);
    const std::vector<From> a_sizes = sizes_of(a.data);
    const std::vector<From> b_sizes = sizes_of(b.data);
    Matmul of_sizes = op;
    of_sizes.a = a_sizes.data();
    of_sizes.b = b_sizes.data();
    const Doubles terms = reference::multiply(of_sizes);
    const Mirror mirror(allocator(), a.data, b.data, c.data, bias_memory);
    op.a = inner == 0 ? nullptr : mirror(op.a);
    op.b = inner == 0 ? nullptr : mirror(op.b);
    op.c = mirror(c.data.data());
    op.bias = mirror(bias);
    // Twice: the second product of a shape goes by the plan of the first.
    for (int round = 0; round < 2; ++round) cuda::run(op, queue());
    c.data = mirror.now(c.data);
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t j = 0; j < columns; ++j) {
        const auto at = static_cast<std::size_t>(r * columns + j);
        const auto own_bias = static_cast<double>(bias[j]);
        ASSERT_NEAR(c(r, j), product[at] + own_bias, rounding * (terms[at] + std::fabs(own_bias))) << r << ", " << j;
      }
    }
    c.expect_gaps_untouched();
  }

  // A weight's gradient += a^T b, and its bias's += the sums of a's columns.
  template <typename From>
  void expect_row_sums(Random& random, std::int64_t gap) {
    const std::int64_t rows = random.integer(1, 70);
    const std::int64_t columns = random.integer(1, 70);
    const std::int64_t inner = random.integer(1, 200);
    Rows<From> a(inner, rows, rows + gap);
    Rows<From> b(inner, columns, columns + gap);
    Rows<float> c(rows, columns);
    a.randomise(random);
    b.randomise(random);
    c.randomise(random);
    std::vector<float> sums = random.normals(static_cast<std::size_t>(rows));
    Matmul op{.a = a.data.data(),
              .b = b.data.data(),
              .c = nullptr,
              .rows = rows,
              .columns = columns,
              .inner = inner,
              .transpose_a = Transpose::kYes,
              .output = Output::kAccumulate,
              .operand_dtype = DTypeOf<From>::value,
              .a_stride = a.stride,
              .b_stride = b.stride};
    Doubles expected = reference::multiply(op);
    const Doubles before = c.dense();
    for (std::size_t i = 0; i < expected.size(); ++i) expected[i] += before[i];
    Doubles expected_sums;
    for (std::int64_t r = 0; r < rows; ++r) {
      double sum = static_cast<double>(sums[static_cast<std::size_t>(r)]);
      for (std::int64_t k = 0; k < inner; ++k) sum += a(k, r);
      expected_sums.push_back(sum);
    }
    const Mirror mirror(allocator(), a.data, b.data, c.data, sums);
    op.a = mirror(op.a);
    op.b = mirror(op.b);
    op.c = mirror(c.data.data());
    op.row_sums = mirror(sums.data());
    cuda::run(op, queue());
    c.data = mirror.now(c.data);
    const double scale = 3 * std::sqrt(static_cast<double>(inner));
    test::expect_close(c.dense(), expected, test::rounding_of<float>(), "gradient of a weight", scale);
    const std::vector<float> now = mirror.now(sums);
    test::expect_close(Doubles(now.begin(), now.end()), expected_sums, test::rounding_of<float>(), "gradient of a bias",
                       scale);
  }
};

TEST_F(CudaMatmul, MatrixProductsAreRightInEveryLayoutAndType) {
  Random random;
  const auto check = [&]<typename From, typename To>(bool whole) {
    const auto size = [&] { return whole ? 16 * random.integer(1, 6) : random.integer(1, 70); };
    Matmul op{.rows = size(), .columns = size(), .inner = size()};
    op.transpose_a = random.flip() ? Transpose::kYes : Transpose::kNo;
    op.transpose_b = random.flip() ? Transpose::kYes : Transpose::kNo;
    op.output = random.flip() ? Output::kAccumulate : Output::kOverwrite;
    op.operand_dtype = DTypeOf<From>::value;
    op.output_dtype = DTypeOf<To>::value;
    const auto gap = [&] { return whole ? 0 : random.integer(0, 5); };
    const bool turn_a = op.transpose_a == Transpose::kYes;
    const bool turn_b = op.transpose_b == Transpose::kYes;
    op.a_stride = (turn_a ? op.rows : op.inner) + gap();
    op.b_stride = (turn_b ? op.inner : op.columns) + gap();
    op.c_stride = op.columns + gap();
    Rows<From> a(turn_a ? op.inner : op.rows, turn_a ? op.rows : op.inner, op.a_stride);
    Rows<From> b(turn_b ? op.columns : op.inner, turn_b ? op.inner : op.columns, op.b_stride);
    Rows<To> c(op.rows, op.columns, op.c_stride);
    Rows<To> addend = c;
    addend.randomise(random);
    const bool adds_another = op.output == Output::kAccumulate && random.flip();
    a.randomise(random);
    b.randomise(random);
    c.randomise(random);
    op.a = a.data.data();
    op.b = b.data.data();
    test::Doubles expected = reference::multiply(op);
    const test::Doubles before = adds_another ? addend.dense() : c.dense();
    if (op.output == Output::kAccumulate) {
      for (std::size_t i = 0; i < expected.size(); ++i) expected[i] += before[i];
    }
    const Mirror mirror(allocator(), a.data, b.data, c.data, addend.data);
    op.a = mirror(op.a);
    op.b = mirror(op.b);
    op.c = mirror(c.data.data());
    op.addend = adds_another ? mirror(addend.data.data()) : nullptr;
    for (int round = 0; round < (op.output == Output::kOverwrite ? 2 : 1); ++round) cuda::run(op, queue());
    c.data = mirror.now(c.data);
    test::expect_close(c.dense(), expected, test::rounding_of<To>(), "product",
                       3 * std::sqrt(static_cast<double>(op.inner)));
    c.expect_gaps_untouched();
  };
  for (int trial = 0; trial < 12; ++trial) {
    check.operator()<float, float>(trial % 2 == 0);
    check.operator()<BFloat16, BFloat16>(trial % 2 == 0);
    check.operator()<BFloat16, float>(trial % 2 == 0);
  }
}

TEST_F(CudaMatmul, AProductOverNothingIsZero) {
  std::vector<float> c(12, 3.0f);
  const Mirror mirror(allocator(), c);
  cuda::run(
      Matmul{.a = nullptr, .b = nullptr, .c = mirror(c.data()), .rows = 2, .columns = 3, .inner = 0, .c_stride = 5},
      queue());
  EXPECT_EQ(mirror.now(c), (std::vector<float>{0, 0, 0, 3, 3, 0, 0, 0, 3, 3, 3, 3}));
}

TEST_F(CudaMatmul, ABiasIsAddedToEveryRowOfTheProduct) {
  Random random;
  for (int trial = 0; trial < 10; ++trial) {
    const std::int64_t gap = trial % 2 == 0 ? 0 : random.integer(1, 5);
    expect_bias<float, float>(random, gap, test::rounding_of<float>());
    expect_bias<BFloat16, float>(random, gap, test::rounding_of<float>());
    expect_bias<BFloat16, BFloat16>(random, gap, 2 * test::rounding_of<BFloat16>());  // the product may be rounded too
  }
}

TEST_F(CudaMatmul, ABiasMayLieAnywhere) {
  Random random;
  for (const std::int64_t offset : {1, 2, 3, 4, 5}) {
    for (int trial = 0; trial < 5; ++trial) {
      expect_bias<float, float>(random, 0, test::rounding_of<float>(), offset);
      expect_bias<BFloat16, float>(random, 0, test::rounding_of<float>(), offset);
      expect_bias<BFloat16, BFloat16>(random, 0, 2 * test::rounding_of<BFloat16>(), offset);
    }
  }
}

TEST_F(CudaMatmul, ABiassGradientComesWithItsWeights) {
  Random random;
  for (int trial = 0; trial < 10; ++trial) {
    const std::int64_t gap = trial % 2 == 0 ? 0 : random.integer(1, 5);
    expect_row_sums<float>(random, gap);
    expect_row_sums<BFloat16>(random, gap);
  }
}

TEST_F(CudaMatmul, EqualInputsGiveEqualBitsWithBiasAndRowSumsToo) {
  Random random;
  const std::vector<float> a = random.normals(64 * 96);
  const std::vector<float> b = random.normals(64 * 96);
  const std::vector<float> bias = random.normals(64);
  const auto run = [&](bool backward) {
    const std::vector<float> c(64 * 64);
    const std::vector<float> sums(64);
    const Mirror mirror(allocator(), a, b, c, bias, sums);
    Matmul op{.a = mirror(a.data()), .b = mirror(b.data()), .c = mirror(const_cast<float*>(c.data()))};
    op.rows = op.columns = 64;
    op.inner = 96;
    if (backward) {
      op.transpose_a = Transpose::kYes;
      op.output = Output::kAccumulate;
      op.row_sums = mirror(const_cast<float*>(sums.data()));
    } else {
      op.transpose_b = Transpose::kYes;
      op.bias = mirror(bias.data());
    }
    cuda::run(op, queue());
    std::vector<float> all = mirror.now(c);
    const std::vector<float> row_sums = mirror.now(sums);
    all.insert(all.end(), row_sums.begin(), row_sums.end());
    return all;
  };
  for (const bool backward : {false, true}) {
    const std::vector<float> first = run(backward);
    for (int round = 0; round < 3; ++round) EXPECT_EQ(run(backward), first);
  }
}

TEST_F(CudaMatmul, Tf32IsWithinItsRoundingAndLeavesBf16Alone) {
  Random random;
  for (int trial = 0; trial < 5; ++trial) expect_bias<float, float>(random, 0, test::rounding_of<float>());
  cuda::choose_matmul_precision(queue(), MatmulPrecision::kTf32);
  // Each of two operands loses 2^-10 of itself at most: what is behind 10 bits may be cut off.
  const double tf32 = std::ldexp(1.0, -9);
  for (int trial = 0; trial < 5; ++trial) {
    expect_bias<float, float>(random, 0, tf32);
    expect_bias<BFloat16, float>(random, 0, test::rounding_of<float>());
  }
  cuda::choose_matmul_precision(queue(), MatmulPrecision::kF32);
  for (int trial = 0; trial < 5; ++trial) expect_bias<float, float>(random, 0, test::rounding_of<float>());
}

// Where nothing is rounded tf32 would be f32 under another name. Large: cuBLASLt may, but need not, take tf32.
TEST_F(CudaMatmul, Tf32IsInUseWhereItIsChosenAndNowhereElse) {
  Random random;
  constexpr std::int64_t kSize = 512;
  Rows<float> a(kSize, kSize);
  Rows<float> b(kSize, kSize);
  Rows<float> c(kSize, kSize);
  a.randomise(random);
  b.randomise(random);
  const std::vector<float> bias = random.normals(kSize);
  const Mirror mirror(allocator(), a.data, b.data, c.data, bias);
  Matmul op{.a = mirror(a.data.data()), .b = mirror(b.data.data()), .c = mirror(c.data.data())};
  op.rows = op.columns = op.inner = kSize;
  op.transpose_b = Transpose::kYes;
  for (const bool with_bias : {false, true}) {
    op.bias = with_bias ? mirror(bias.data()) : nullptr;
    const auto product = [&](MatmulPrecision precision) {
      cuda::choose_matmul_precision(queue(), precision);
      cuda::run(op, queue());
      return mirror.now(c.data);
    };
    const std::vector<float> in_f32 = product(MatmulPrecision::kF32);
    EXPECT_NE(product(MatmulPrecision::kTf32), in_f32);
    EXPECT_EQ(product(MatmulPrecision::kF32), in_f32);
  }
}

}  // namespace
}  // namespace kvloom
