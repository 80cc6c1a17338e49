// Matrix products of the device that tests run kernels on: plain loops in place of cuBLASLt.
#include "kernels/cuda/matmul_plans.h"
#include "kernels/dtype.h"
#include "tests/support/reference_matmul.h"
#include "tests/support/simt/capture.h"
#include "tests/support/simt/device_memory.h"

namespace kvloom::cuda {
namespace {

void add_row_sums(const Matmul& op) {
  const std::int64_t stride = op.a_stride == 0 ? op.rows : op.a_stride;
  for (std::int64_t i = 0; i < op.rows; ++i) {
    double sum = 0;
    for (std::int64_t k = 0; k < op.inner; ++k) sum += reference::element(op.a, op.operand_dtype, k * stride + i);
    op.row_sums[i] += static_cast<float>(sum);
  }
}

template <typename T>
void multiply_into(T* c, const Matmul& op) {
  const std::vector<double> product = reference::multiply(op);
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

void compute(const Matmul& op) {
  const simt::DeviceMemoryAccess access;
  if (op.output_dtype == DType::kF32) {
    multiply_into(static_cast<float*>(op.c), op);
  } else {
    multiply_into(static_cast<BFloat16*>(op.c), op);
  }
  if (op.row_sums != nullptr) add_row_sums(op);
}

}  // namespace

struct MatmulPlans::Library {};
struct MatmulPlans::Plan {};

MatmulPlans::MatmulPlans() = default;
MatmulPlans::~MatmulPlans() = default;

// As cuBLASLt it refuses some of what may go with a product: vectors that are not of the result's type and, so that
// both ways are gone, row sums of an odd number of rows.
bool MatmulPlans::run(const Matmul& op, Queue& queue) {
  const bool with_vector = op.bias != nullptr || op.row_sums != nullptr;
  if (with_vector && op.output_dtype != DType::kF32) return false;
  if (op.row_sums != nullptr && op.rows % 2 == 1) return false;
  simt::give(queue.stream(), [op] { compute(op); });
  return true;
}

}  // namespace kvloom::cuda
