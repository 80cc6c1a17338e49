// RMSNorm on a GPU against the same on the CPU, which its own tests hold against doubles. Run with the kernels compiled
// for the host as well (simt_cuda_rms_norm_test).
#include "kernels/rms_norm.h"

#include <gmock/gmock.h>

#include "tests/support/same_as_cpu.h"
#include "tests/support/thrown.h"

namespace kvloom {
namespace {

using test::expect_same;
using test::Mirror;
using test::Random;
using test::row_sizes;
using test::Rows;
using test::RowSize;

template <typename T>
class CudaRmsNorm : public test::GpuTest {};
TYPED_TEST_SUITE(CudaRmsNorm, test::ComputeTypes);

TYPED_TEST(CudaRmsNorm, RmsNormForwardIsTheCpus) {
  Random random;
  for (const RowSize& size : row_sizes(random)) {
    Rows<TypeParam> input(size.rows, size.columns, size.columns + size.gap);
    Rows<TypeParam> output(size.rows, size.columns, size.columns + 2 * size.gap);
    input.randomise(random, random.real(0.1, 4));
    const auto gain = random.normals(static_cast<std::size_t>(size.columns));
    std::vector<float> inverse_rms(static_cast<std::size_t>(size.rows));
    const Mirror mirror(this->allocator(), input.data, output.data, gain, inverse_rms);
    RmsNormForward op{.input = input.data.data(),
                      .gain = gain.data(),
                      .output = output.data.data(),
                      .inverse_rms = inverse_rms.data(),
                      .rows = size.rows,
                      .columns = size.columns,
                      .epsilon = 1e-5f,
                      .dtype = DTypeOf<TypeParam>::value,
                      .input_stride = input.stride,
                      .output_stride = output.stride};
    if (size.rows == 0) op.input = op.output = nullptr;
    cpu::run(op);
    if (size.rows > 0) {
      op.input = mirror(op.input);
      op.gain = mirror(op.gain);
      op.output = mirror(op.output);
      op.inverse_rms = mirror(op.inverse_rms);
    }
    cuda::run(op, this->queue());
    expect_same(mirror, output.data, "output");
    expect_same(mirror, inverse_rms, "inverse_rms");
  }
}

TYPED_TEST(CudaRmsNorm, RmsNormOfASumWithAResidualIsTheCpus) {
  Random random;
  for (const RowSize& size : row_sizes(random)) {
    if (size.rows == 0) continue;
    for (const bool in_place : {false, true}) {
      Rows<TypeParam> input(size.rows, size.columns, size.columns + size.gap);
      Rows<TypeParam> addend(size.rows, size.columns);
      Rows<TypeParam> sum(size.rows, size.columns);
      Rows<TypeParam> output(size.rows, size.columns);
      input.randomise(random, random.real(0.1, 4));
      addend.randomise(random);
      const auto gain = random.normals(static_cast<std::size_t>(size.columns));
      std::vector<float> inverse_rms(static_cast<std::size_t>(size.rows));
      const Mirror mirror(this->allocator(), input.data, addend.data, sum.data, output.data, gain, inverse_rms);
      const auto op = [&](const auto& at) {
        return RmsNormForward{.input = at(input.data.data()),
                              .gain = at(gain.data()),
                              .output = at(output.data.data()),
                              .inverse_rms = at(inverse_rms.data()),
                              .rows = size.rows,
                              .columns = size.columns,
                              .epsilon = 1e-5f,
                              .dtype = DTypeOf<TypeParam>::value,
                              .input_stride = input.stride,
                              .addend = at(addend.data.data()),
                              .sum = at((in_place ? addend : sum).data.data())};
      };
      cuda::run(op(mirror), this->queue());
      cpu::run(op([](auto* host) { return host; }));
      const auto& written = in_place ? addend.data : sum.data;
      EXPECT_TRUE(test::equal_bits(mirror.now(written), written));
      expect_same(mirror, output.data, "output");
      expect_same(mirror, inverse_rms, "inverse_rms");
    }
  }
}

TYPED_TEST(CudaRmsNorm, RmsNormBackwardIsTheCpusAndHasEqualBitsEveryTime) {
  Random random;
  auto all = row_sizes(random);
  all.push_back({random.integer(540, 560), 8 * 140, 0});
  all.push_back({random.integer(2200, 2300), 8, 0});
  all.push_back({2, 12288, 0});  // 48 KiB for a block's sums
  for (const RowSize& size : all) {
    if (size.rows == 0) continue;
    for (const bool accumulate : {false, true}) {
      Rows<TypeParam> input(size.rows, size.columns, size.columns + size.gap);
      Rows<TypeParam> grad_output(size.rows, size.columns);
      Rows<TypeParam> grad_input(size.rows, size.columns, size.columns + 2 * size.gap);
      input.randomise(random);
      grad_output.randomise(random);
      grad_input.randomise(random);
      const auto gain = random.normals(static_cast<std::size_t>(size.columns));
      auto grad_gain = random.normals(static_cast<std::size_t>(size.columns));
      std::vector<float> inverse_rms(static_cast<std::size_t>(size.rows));
      for (float& scale : inverse_rms) scale = static_cast<float>(random.real(0.5, 2));
      const Mirror mirror(this->allocator(), input.data, grad_output.data, grad_input.data, gain, grad_gain,
                          inverse_rms);
      const Mirror again(this->allocator(), input.data, grad_output.data, grad_input.data, gain, grad_gain,
                         inverse_rms);
      const RmsNormBackward op{.input = input.data.data(),
                               .gain = gain.data(),
                               .inverse_rms = inverse_rms.data(),
                               .grad_output = grad_output.data.data(),
                               .grad_input = grad_input.data.data(),
                               .grad_gain = grad_gain.data(),
                               .rows = size.rows,
                               .columns = size.columns,
                               .accumulate_input = accumulate,
                               .dtype = DTypeOf<TypeParam>::value,
                               .input_stride = input.stride,
                               .grad_input_stride = grad_input.stride};
      for (const Mirror* there : {&mirror, &again}) {
        RmsNormBackward on = op;
        on.input = (*there)(op.input);
        on.gain = (*there)(op.gain);
        on.inverse_rms = (*there)(op.inverse_rms);
        on.grad_output = (*there)(op.grad_output);
        on.grad_input = (*there)(op.grad_input);
        on.grad_gain = (*there)(op.grad_gain);
        cuda::run(on, this->queue());
      }
      cpu::run(op);
      expect_same(mirror, grad_input.data, "grad_input", 1);
      expect_same(mirror, grad_gain, "grad_gain", std::sqrt(static_cast<double>(size.rows)));
      EXPECT_TRUE(test::equal_bits(mirror.now(grad_gain), again.now(grad_gain)));
    }
  }
}

using CudaRmsNormOnce = test::GpuTest;

TEST_F(CudaRmsNormOnce, BackwardSaysThatRowsAreTooLong) {
  const std::string message = test::message_of(
      [&] { cuda::run(RmsNormBackward{.rows = 1, .columns = 100000, .dtype = DType::kBF16}, queue()); });
  EXPECT_THAT(message, ::testing::ContainsRegex("run: rms_norm_backward: the sums of 100000 columns take 39[0-9] KiB"));
}

}  // namespace
}  // namespace kvloom
