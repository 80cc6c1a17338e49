// Matrix products of the device that tests run kernels on: plain loops in place of cuBLASLt.
#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/cuda/matmul_plans.h"
#include "kernels/dtype.h"
#include "kernels/error.h"
#include "tests/support/reference_matmul.h"
#include "tests/support/simt/capture.h"
#include "tests/support/simt/device_memory.h"

namespace kvloom::cuda {
namespace {

// To the nearest value with 10 bits after the point, of two equally near the one further from zero.
float as_tf32(float value) {
  if (std::isnan(value)) return value;
  constexpr std::uint32_t kDropped = 13;
  const auto bits = std::bit_cast<std::uint32_t>(value) + (std::uint32_t{1} << (kDropped - 1));
  return std::bit_cast<float>(bits >> kDropped << kDropped);
}

// All that is stored of an operand, rounded: rows of `columns` elements, `stride` apart in `data`, dense in the result.
std::vector<float> as_tf32(const void* data, std::int64_t rows, std::int64_t columns, std::int64_t stride) {
  std::vector<float> rounded;
  for (std::int64_t r = 0; r < rows; ++r) {
    const float* row = static_cast<const float*>(data) + r * (stride == 0 ? columns : stride);
    for (std::int64_t c = 0; c < columns; ++c) rounded.push_back(as_tf32(row[c]));
  }
  return rounded;
}

std::vector<double> multiply(const Matmul& op, MatmulPrecision precision) {
  if (precision == MatmulPrecision::kF32 || op.operand_dtype != DType::kF32) return reference::multiply(op);
  const bool turn_a = op.transpose_a == Transpose::kYes;
  const bool turn_b = op.transpose_b == Transpose::kYes;
  const std::vector<float> a = as_tf32(op.a, turn_a ? op.inner : op.rows, turn_a ? op.rows : op.inner, op.a_stride);
  const std::vector<float> b =
      as_tf32(op.b, turn_b ? op.columns : op.inner, turn_b ? op.inner : op.columns, op.b_stride);
  Matmul rounded = op;
  rounded.a = a.data();
  rounded.b = b.data();
  rounded.a_stride = rounded.b_stride = 0;
  return reference::multiply(rounded);
}

template <typename T>
void multiply_into(T* c, const Matmul& op, MatmulPrecision precision) {
  const std::vector<double> product = multiply(op, precision);
  const std::int64_t stride = op.c_stride == 0 ? op.columns : op.c_stride;
  for (std::int64_t i = 0; i < op.rows; ++i) {
    for (std::int64_t j = 0; j < op.columns; ++j) {
      T& place = c[i * stride + j];
      const T former = op.addend == nullptr ? place : static_cast<const T*>(op.addend)[i * stride + j];
      const double before = op.output == Output::kAccumulate ? static_cast<double>(static_cast<float>(former)) : 0.0;
      const double bias = op.bias == nullptr ? 0.0 : static_cast<double>(op.bias[j]);
      place = T(static_cast<float>(before + product[static_cast<std::size_t>(i * op.columns + j)] + bias));
    }
  }
}

void compute(const Matmul& op, MatmulPrecision precision) {
  const simt::DeviceMemoryAccess access;
  if (op.output_dtype == DType::kF32) {
    multiply_into(static_cast<float*>(op.c), op, precision);
  } else {
    multiply_into(static_cast<BFloat16*>(op.c), op, precision);
  }
}

}  // namespace

struct MatmulPlans::Library {};
struct MatmulPlans::Plan {};

MatmulPlans::MatmulPlans() = default;
MatmulPlans::~MatmulPlans() = default;

// As cuBLASLt has no kernel for some pairs of product and bias, this has none for an odd number of columns, so that
// both ways are gone. What cuBLASLt is never to be asked for is an error.
bool MatmulPlans::run(const Matmul& op, Queue& queue) {
  if (op.row_sums != nullptr) fail("matmul: row sums do not go with a product");
  if (op.bias != nullptr) {
    if (op.output_dtype != DType::kF32) fail("matmul: a bias of another type than the result's");
    if (reinterpret_cast<std::uintptr_t>(op.bias) % 16 != 0) fail("matmul: a bias that does not lie at 16 bytes");
    if (op.columns % 2 == 1) return false;
  }
  simt::give(queue.stream(), [op, precision = queue.matmul_precision()] { compute(op, precision); });
  return true;
}

}  // namespace kvloom::cuda
