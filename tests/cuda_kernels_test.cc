// Operations that have no file of their own on a GPU against the same on the CPU, which its own tests hold against
// doubles. Run with the kernels compiled for the host as well (simt_cuda_kernels_test).
#include "kernels/adamw.h"
#include "kernels/cuda/queue.h"
#include "kernels/cuda/sum_parts.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/reduce.h"
#include "kernels/swiglu.h"
#include "tests/support/same_as_cpu.h"

namespace kvloom {
namespace {

using test::expect_same;
using test::Mirror;
using test::Random;
using test::row_sizes;
using test::Rows;
using test::RowSize;

template <typename T>
class CudaKernels : public test::GpuTest {};
TYPED_TEST_SUITE(CudaKernels, test::ComputeTypes);

TYPED_TEST(CudaKernels, SwigluIsTheCpusForwardAndBackward) {
  Random random;
  for (const RowSize& size : row_sizes(random)) {
    if (size.rows == 0) continue;
    Rows<TypeParam> gate_up(size.rows, 2 * size.columns);
    Rows<TypeParam> output(size.rows, size.columns);
    Rows<TypeParam> grad(size.rows, 2 * size.columns);
    gate_up.randomise(random, 2);
    Rows<TypeParam> grad_output = output;
    grad_output.randomise(random);
    const Mirror mirror(this->allocator(), gate_up.data, output.data, grad.data, grad_output.data);
    constexpr DType kDType = DTypeOf<TypeParam>::value;
    cpu::run(SwigluForward{gate_up.data.data(), output.data.data(), size.rows, size.columns, kDType});
    cpu::run(SwigluBackward{gate_up.data.data(), grad_output.data.data(), grad.data.data(), size.rows, size.columns,
                            kDType});
    cuda::run(SwigluForward{mirror(gate_up.data.data()), mirror(output.data.data()), size.rows, size.columns, kDType},
              this->queue());
    cuda::run(SwigluBackward{mirror(gate_up.data.data()), mirror(grad_output.data.data()), mirror(grad.data.data()),
                             size.rows, size.columns, kDType},
              this->queue());
    expect_same(mirror, output.data, "output", 1);
    expect_same(mirror, grad.data, "gradient", 1);
  }
}

// Where the exponential of a gate, or its reciprocal, is beyond what a float holds.
TYPED_TEST(CudaKernels, SwigluOfLargeGatesIsTheCpusForwardAndBackward) {
  Random random;
  constexpr DType kDType = DTypeOf<TypeParam>::value;
  const std::int64_t columns = 8 * random.integer(1, 40);
  Rows<TypeParam> gate_up(2, columns);
  gate_up.randomise(random);
  for (std::int64_t c = 0; c < columns; ++c) {
    const double size = random.flip() ? random.real(80, 130) : random.real(100, 10000);
    gate_up.at(0, c) = TypeParam(static_cast<float>(random.flip() ? size : -size));
  }
  Rows<TypeParam> output(1, columns);
  Rows<TypeParam> grad_output = output;
  grad_output.randomise(random);
  Rows<TypeParam> grad = gate_up;
  const Mirror mirror(this->allocator(), gate_up.data, output.data, grad.data, grad_output.data);
  cpu::run(SwigluForward{gate_up.data.data(), output.data.data(), 1, columns, kDType});
  cpu::run(SwigluBackward{gate_up.data.data(), grad_output.data.data(), grad.data.data(), 1, columns, kDType});
  cuda::run(SwigluForward{mirror(gate_up.data.data()), mirror(output.data.data()), 1, columns, kDType}, this->queue());
  cuda::run(SwigluBackward{mirror(gate_up.data.data()), mirror(grad_output.data.data()), mirror(grad.data.data()), 1,
                           columns, kDType},
            this->queue());
  expect_same(mirror, output.data, "output");
  expect_same(mirror, grad.data, "gradient");
}

TYPED_TEST(CudaKernels, AddAndBiasAreTheCpus) {
  Random random;
  constexpr DType kDType = DTypeOf<TypeParam>::value;
  for (const RowSize& size : row_sizes(random)) {
    if (size.rows == 0) continue;
    Rows<TypeParam> data(size.rows, size.columns, size.columns + size.gap);
    data.randomise(random);
    Rows<TypeParam> a = data;
    Rows<TypeParam> b = data;
    b.randomise(random);
    const auto bias = random.normals(static_cast<std::size_t>(size.columns));
    auto grad_bias = bias;
    const Mirror mirror(this->allocator(), data.data, a.data, b.data, bias, grad_bias);
    const auto count = static_cast<std::int64_t>(a.data.size());
    cpu::run(Add{a.data.data(), b.data.data(), b.data.data(), count, kDType});
    cuda::run(Add{mirror(a.data.data()), mirror(b.data.data()), mirror(b.data.data()), count, kDType}, this->queue());
    expect_same(mirror, b.data, "sum");
    cpu::run(BiasBackward{a.data.data(), grad_bias.data(), size.rows, size.columns, a.stride, kDType});
    cuda::run(BiasBackward{mirror(a.data.data()), mirror(grad_bias.data()), size.rows, size.columns, a.stride, kDType},
              this->queue());
    expect_same(mirror, grad_bias, "grad_bias", 1);
    cpu::run(BiasForward{data.data.data(), bias.data(), size.rows, size.columns, data.stride, kDType});
    cuda::run(BiasForward{mirror(data.data.data()), mirror(bias.data()), size.rows, size.columns, data.stride, kDType},
              this->queue());
    expect_same(mirror, data.data, "biased");
  }
}

TYPED_TEST(CudaKernels, BiasGradientOfManyRowsIsTheCpus) {
  Random random;
  Rows<TypeParam> grad(random.integer(1200, 1300), 37);
  grad.randomise(random);
  std::vector<float> sums(37, 1.0f);
  const Mirror mirror(this->allocator(), grad.data, sums);
  constexpr DType kDType = DTypeOf<TypeParam>::value;
  cpu::run(BiasBackward{grad.data.data(), sums.data(), grad.rows, 37, 37, kDType});
  cuda::run(BiasBackward{mirror(grad.data.data()), mirror(sums.data()), grad.rows, 37, 37, kDType}, this->queue());
  expect_same(mirror, sums, "sums", std::sqrt(static_cast<double>(grad.rows)));
}

TYPED_TEST(CudaKernels, EmbeddingIsTheCpusAndItsGradientHasTheCpusBits) {
  Random random;
  constexpr DType kDType = DTypeOf<TypeParam>::value;
  for (const std::int64_t columns : {random.integer(1, 30), std::int64_t{64}, 8 * random.integer(280, 300)}) {
    const std::int64_t rows = columns == 64 ? random.integer(300, 600) : random.integer(1, 20);
    const std::int64_t table_rows = random.integer(3, 12);
    const std::int64_t first = random.integer(0, 5);
    // Some beyond the shard on either side, one much more often than the others.
    auto tokens = random.tokens(static_cast<std::size_t>(rows), table_rows + first + 3);
    for (std::int32_t& token : tokens) token = random.integer(0, 3) == 0 ? static_cast<std::int32_t>(first) : token;
    Rows<TypeParam> table(table_rows, columns);
    Rows<TypeParam> output(rows, columns);
    Rows<TypeParam> grad_output(rows, columns);
    Rows<float> grad_table(table_rows, columns);
    table.randomise(random);
    grad_output.randomise(random);
    grad_table.randomise(random);
    const Mirror mirror(this->allocator(), tokens, table.data, output.data, grad_output.data, grad_table.data);
    cpu::run(EmbeddingForward{tokens.data(), table.data.data(), output.data.data(), rows, columns, table_rows, first,
                              kDType});
    cuda::run(EmbeddingForward{mirror(tokens.data()), mirror(table.data.data()), mirror(output.data.data()), rows,
                               columns, table_rows, first, kDType},
              this->queue());
    EXPECT_TRUE(test::equal_bits(mirror.now(output.data), output.data));
    cpu::run(EmbeddingBackward{tokens.data(), grad_output.data.data(), grad_table.data.data(), rows, columns,
                               table_rows, first, kDType});
    cuda::run(EmbeddingBackward{mirror(tokens.data()), mirror(grad_output.data.data()), mirror(grad_table.data.data()),
                                rows, columns, table_rows, first, kDType},
              this->queue());
    EXPECT_TRUE(test::equal_bits(mirror.now(grad_table.data), grad_table.data));
  }
}

// Rows are looked through 2048 at a time: tokens that come late, again after a gap, and only once.
TYPED_TEST(CudaKernels, EmbeddingGradientOfManyRowsHasTheCpusBits) {
  Random random;
  constexpr DType kDType = DTypeOf<TypeParam>::value;
  const std::int64_t rows = random.integer(4100, 6300);
  constexpr std::int64_t kColumns = 8;
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(rows), 0);
  const auto put = [&](std::int32_t token, std::int64_t first, std::int64_t last) {
    tokens[static_cast<std::size_t>(random.integer(first, last))] = token;
  };
  for (int i = 0; i < 5; ++i) {
    put(1, 0, 200);
    put(1, 4096, rows - 1);
    put(2, 2048, rows - 1);
    put(3, 0, rows - 1);
  }
  put(4, rows - 1, rows - 1);
  Rows<TypeParam> grad_output(rows, kColumns);
  Rows<float> grad_table(5, kColumns);
  grad_output.randomise(random);
  grad_table.randomise(random);
  const Mirror mirror(this->allocator(), tokens, grad_output.data, grad_table.data);
  cpu::run(
      EmbeddingBackward{tokens.data(), grad_output.data.data(), grad_table.data.data(), rows, kColumns, 5, 0, kDType});
  cuda::run(EmbeddingBackward{mirror(tokens.data()), mirror(grad_output.data.data()), mirror(grad_table.data.data()),
                              rows, kColumns, 5, 0, kDType},
            this->queue());
  EXPECT_TRUE(test::equal_bits(mirror.now(grad_table.data), grad_table.data));
}

TYPED_TEST(CudaKernels, MaxChangeIsTheCpusAndShowsNotANumber) {
  Random random;
  constexpr DType kDType = DTypeOf<TypeParam>::value;
  for (const std::int64_t count : {std::int64_t{1}, random.integer(2, 300), random.integer(9000, 20000)}) {
    Rows<TypeParam> a(1, count);
    Rows<TypeParam> b(1, count);
    a.randomise(random);
    b.randomise(random);
    for (const bool broken : {false, true}) {
      if (broken) b.at(0, random.integer(0, count - 1)) = Rows<TypeParam>::gap();
      const Mirror mirror(this->allocator(), a.data, b.data);
      float expected[2];
      float actual[2];
      cpu::run(MaxChange{a.data.data(), b.data.data(), count, &expected[0], &expected[1], kDType});
      cuda::run(MaxChange{mirror(a.data.data()), mirror(b.data.data()), count, &actual[0], &actual[1], kDType},
                this->queue());
      EXPECT_EQ(std::isnan(actual[0]), broken);
      EXPECT_TRUE(broken || actual[0] == expected[0]);
      EXPECT_EQ(actual[1], expected[1]);
    }
  }
}

class CudaKernelsOnce : public test::GpuTest {};

TEST_F(CudaKernelsOnce, CastsRoundAsTheCpuDoes) {
  Random random;
  const auto check = [&]<typename From, typename To>(std::int64_t rows, std::int64_t columns, std::int64_t gap) {
    Rows<From> input(rows, columns, columns + gap);
    Rows<To> output(rows, columns, columns + gap);
    input.randomise(random);
    const Mirror mirror(allocator(), input.data, output.data);
    Cast op{input.data.data(),    output.data.data(), rows,         columns,
            DTypeOf<From>::value, DTypeOf<To>::value, input.stride, output.stride};
    cpu::run(op);
    op.input = mirror(op.input);
    op.output = mirror(op.output);
    cuda::run(op, queue());
    test::Doubles expected = output.dense();
    output.data = mirror.now(output.data);
    EXPECT_EQ(output.dense(), expected);
    output.expect_gaps_untouched();
  };
  for (const std::int64_t columns : {std::int64_t{1}, random.integer(2, 40), std::int64_t{256}}) {
    const std::int64_t rows = random.integer(1, 5);
    const std::int64_t gap = columns == 256 ? 8 : random.integer(0, 3);
    check.operator()<float, BFloat16>(rows, columns, gap);
    check.operator()<BFloat16, float>(rows, columns, gap);
    check.operator()<float, float>(rows, columns, gap);
  }
  check.operator()<float, BFloat16>(1, random.integer(1000, 3000), 0);
}

TEST_F(CudaKernelsOnce, AdamWTakesTheCpusStep) {
  Random random;
  for (const std::int64_t count : {random.integer(1, 9), random.integer(1000, 3000)}) {
    for (const std::int64_t offset : {0, 1}) {  // the second breaks the alignment
      const auto size = static_cast<std::size_t>(count + offset);
      auto weight = random.normals(size);
      auto momentum = random.normals(size, 0.1);
      auto variance = random.normals(size, 0.1);
      for (float& value : variance) value = std::fabs(value);
      const auto gradient = random.normals(size);
      std::vector<BFloat16> copy(size);
      const Mirror mirror(allocator(), weight, momentum, variance, gradient, copy);
      AdamW op{.weight = weight.data() + offset,
               .momentum = momentum.data() + offset,
               .variance = variance.data() + offset,
               .gradient = gradient.data() + offset,
               .copy = random.flip() ? copy.data() + offset : nullptr,
               .count = count,
               .step = random.integer(1, 100),
               .learning_rate = 1e-2f,
               .beta1 = 0.9f,
               .beta2 = 0.95f,
               .epsilon = 1e-8f,
               .weight_decay = 0.1f,
               .gradient_scale = 0.7f};
      cpu::run(op);
      op.weight = mirror(op.weight);
      op.momentum = mirror(op.momentum);
      op.variance = mirror(op.variance);
      op.gradient = mirror(op.gradient);
      op.copy = mirror(op.copy);
      cuda::run(op, queue());
      expect_same(mirror, weight, "weight", 1);
      expect_same(mirror, momentum, "momentum", 1);
      expect_same(mirror, variance, "variance", 1);
      expect_same(mirror, copy, "copy", 1);
    }
  }
}

TEST_F(CudaKernelsOnce, PartsOfABf16SumAreAddedInOrderAndRoundedOnce) {
  Random random;
  for (const std::int64_t count : {std::int64_t{1}, random.integer(2, 700), random.integer(3000, 4000)}) {
    const std::int64_t rows = random.integer(1, 9);
    Rows<BFloat16> parts(rows, count);
    parts.randomise(random, 3);
    std::vector<BFloat16> output(static_cast<std::size_t>(count));
    const Mirror mirror(allocator(), parts.data, output);
    cuda::run(cuda::SumParts{mirror(parts.data.data()), mirror(output.data()), rows, count}, queue().stream());
    const std::vector<BFloat16> sums = mirror.now(output);
    for (std::int64_t i = 0; i < count; ++i) {
      auto sum = static_cast<float>(parts.data[static_cast<std::size_t>(i)]);
      for (std::int64_t r = 1; r < rows; ++r) {
        sum += static_cast<float>(parts.data[static_cast<std::size_t>(r * count + i)]);
      }
      ASSERT_EQ(sums[static_cast<std::size_t>(i)].bits, BFloat16(sum).bits) << i << " of " << rows << " rows";
    }
  }
}

TEST_F(CudaKernelsOnce, SumOfSquaresIsTheSum) {
  Random random;
  for (const std::int64_t count :
       {std::int64_t{0}, std::int64_t{1}, random.integer(2, 999), random.integer(9000, 40000)}) {
    for (const std::size_t offset : {0, 1}) {
      const auto data = random.normals(static_cast<std::size_t>(count) + offset + 1);
      double expected = 0;
      for (std::int64_t i = 0; i < count; ++i) {
        expected += std::pow(static_cast<double>(data[static_cast<std::size_t>(i) + offset]), 2);
      }
      const Mirror mirror(allocator(), data);
      double actual = -1;
      cuda::run(SumOfSquares{mirror(data.data() + offset), count, &actual}, queue());
      EXPECT_NEAR(actual, expected, 1e-12 * expected);
    }
  }
}

}  // namespace
}  // namespace kvloom
