#include "kernels/matmul.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <thread>

#include "kernels/elementwise.h"
#include "tests/support/random.h"
#include "tests/support/reference_matmul.h"

namespace kvloom {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// Elements of one dtype, reachable as bytes.
class Buffer {
 public:
  Buffer(std::int64_t count, DType dtype) : dtype_(dtype), bytes_(static_cast<std::size_t>(count) * size_of(dtype)) {}
  std::int64_t size() const { return static_cast<std::int64_t>(bytes_.size() / size_of(dtype_)); }
  void* data() { return bytes_.data(); }
  double at(std::int64_t i) const { return reference::element(bytes_.data(), dtype_, i); }
  void set(std::int64_t i, float value) {
    if (dtype_ == DType::kF32) {
      reinterpret_cast<float*>(bytes_.data())[i] = value;
    } else {
      reinterpret_cast<BFloat16*>(bytes_.data())[i] = BFloat16(value);
    }
  }
  void fill(float value) {
    for (std::int64_t i = 0; i < size(); ++i) set(i, value);
  }
  void randomise(test::Random& random) {
    for (std::int64_t i = 0; i < size(); ++i) set(i, static_cast<float>(random.normal()));
  }

 private:
  DType dtype_;
  std::vector<char> bytes_;
};

void check(Matmul op, test::Random& random) {
  const bool turn_a = op.transpose_a == Transpose::kYes;
  const bool turn_b = op.transpose_b == Transpose::kYes;
  op.a_stride = (turn_a ? op.rows : op.inner) + random.integer(0, 3);
  op.b_stride = (turn_b ? op.inner : op.columns) + random.integer(0, 3);
  op.c_stride = op.columns + random.integer(0, 3);
  Buffer a((turn_a ? op.inner : op.rows) * op.a_stride, op.operand_dtype);
  Buffer b((turn_b ? op.columns : op.inner) * op.b_stride, op.operand_dtype);
  Buffer c(op.rows * op.c_stride, op.output_dtype);
  a.randomise(random);
  b.randomise(random);
  const bool adds = op.output == Output::kAccumulate;
  const bool adds_another = adds && random.flip();
  Buffer addend(op.rows * op.c_stride, op.output_dtype);
  addend.fill(3.0f);
  c.fill(adds && !adds_another ? 3.0f : kNaN);
  op.a = a.data();
  op.b = b.data();
  op.c = c.data();
  op.addend = adds_another ? addend.data() : nullptr;
  const std::vector<double> want = reference::multiply(op);
  cpu::run(op);
  const double root = std::sqrt(static_cast<double>(op.inner));
  const double bound = op.output_dtype == DType::kF32 ? 3e-6 * root : 8e-3 * (root + 1);
  for (std::int64_t i = 0; i < op.rows; ++i) {
    for (std::int64_t j = 0; j < op.columns; ++j) {
      const double got = c.at(i * op.c_stride + j);
      ASSERT_NEAR(got, want[static_cast<std::size_t>(i * op.columns + j)] + (adds ? 3.0 : 0.0), 3 * bound)
          << op.rows << "x" << op.inner << "x" << op.columns << " turned " << turn_a << turn_b << " at " << i << ","
          << j;
    }
    for (std::int64_t j = op.columns; j < op.c_stride; ++j) {
      ASSERT_EQ(std::isnan(c.at(i * op.c_stride + j)), !adds || adds_another) << "wrote between rows";
    }
  }
}

TEST(Matmul, AgreesWithDoublePrecisionInEveryForm) {
  test::Random random;
  const auto form = [&](int bits, int round) {
    Matmul op{};
    op.rows = round % 2 ? random.integer(1, 9) : random.integer(9, 70);
    op.columns = random.integer(1, 140);
    op.inner = random.integer(1, 200);
    op.transpose_a = bits & 1 ? Transpose::kYes : Transpose::kNo;
    op.transpose_b = bits & 2 ? Transpose::kYes : Transpose::kNo;
    op.output = bits & 4 ? Output::kAccumulate : Output::kOverwrite;
    op.operand_dtype = bits & 8 ? DType::kBF16 : DType::kF32;
    op.output_dtype = bits & 16 ? DType::kBF16 : DType::kF32;
    return op;
  };
  for (int bits = 0; bits < 32; ++bits) {
    if ((bits & 16) && !(bits & 8)) continue;
    for (int round = 0; round < 6; ++round) check(form(bits, round), random);
  }
}

// What comes with a product has the bits of the operations it stands for.
TEST(Matmul, BiasAndItsGradientAreThoseOfTheirOwnKernels) {
  test::Random random;
  for (int round = 0; round < 20; ++round) {
    Matmul op{};
    op.rows = round % 2 ? random.integer(1, 9) : random.integer(9, 70);
    op.columns = random.integer(1, 70);
    op.inner = random.integer(0, 9) == 0 ? 0 : random.integer(1, 90);
    op.operand_dtype = random.flip() ? DType::kBF16 : DType::kF32;
    const bool backward = random.flip();
    op.output_dtype = backward ? DType::kF32 : op.operand_dtype;
    op.transpose_a = backward ? Transpose::kYes : Transpose::kNo;
    op.transpose_b = backward ? Transpose::kNo : Transpose::kYes;
    Buffer a(op.rows * op.inner, op.operand_dtype);
    Buffer b(op.columns * op.inner, op.operand_dtype);
    a.randomise(random);
    b.randomise(random);
    const std::vector<float> bias = random.normals(static_cast<std::size_t>(op.columns));
    std::vector<float> sums = random.normals(static_cast<std::size_t>(op.rows));
    std::vector<float> expected_sums = sums;
    Buffer c(op.rows * op.columns, op.output_dtype);
    Buffer expected(op.rows * op.columns, op.output_dtype);
    op.a = a.data();
    op.b = b.data();
    op.c = expected.data();
    cpu::run(op);
    if (backward) {
      cpu::run(BiasBackward{op.a, expected_sums.data(), op.inner, op.rows, op.rows, op.operand_dtype});
      op.row_sums = sums.data();
    } else {
      cpu::run(BiasForward{op.c, bias.data(), op.rows, op.columns, op.columns, op.output_dtype});
      op.bias = bias.data();
    }
    op.c = c.data();
    cpu::run(op);
    for (std::int64_t i = 0; i < c.size(); ++i) ASSERT_EQ(c.at(i), expected.at(i)) << "round " << round;
    ASSERT_EQ(sums, expected_sums) << "round " << round;
  }
}

TEST(Matmul, SumOfNothingIsZeroAndOverwritesNaN) {
  for (const Output output : {Output::kOverwrite, Output::kAccumulate}) {
    std::vector<float> c(6, output == Output::kOverwrite ? kNaN : 2.0f);
    Matmul op{};
    op.c = c.data();
    op.rows = 2;
    op.columns = 3;
    op.inner = 0;
    op.output = output;
    cpu::run(op);
    for (const float value : c) EXPECT_EQ(value, output == Output::kOverwrite ? 0.0f : 2.0f);
  }
}

TEST(Matmul, WithoutRowsOrColumnsTouchesNothing) {
  Matmul op{};
  op.inner = 4;
  op.columns = 4;
  cpu::run(op);
  op.rows = 4;
  op.columns = 0;
  cpu::run(op);
}

TEST(Matmul, SeveralThreadsMultiplyAtOnce) {
  std::vector<std::thread> threads;
  test::Random seeds;
  for (unsigned thread = 0; thread < 3; ++thread) {
    threads.emplace_back([seed = seeds.seed(), thread] {
      test::Random random(seed);
      for (int round = 0; round < 10; ++round) {
        Matmul op{};
        op.rows = 20 + round + thread;
        op.columns = 30;
        op.inner = 40;
        op.transpose_b = Transpose::kYes;
        check(op, random);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace kvloom
