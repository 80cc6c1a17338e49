// Matrix products of the device that tests run kernels on: plain loops in place of cuBLASLt.
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
  simt::give(queue.stream(), [op] { compute(op); });
  return true;
}

}  // namespace kvloom::cuda
