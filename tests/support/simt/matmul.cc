// Matrix products of the device that tests run kernels on: plain loops in place of cuBLASLt.
#include "kernels/cuda/matmul_plans.h"
#include "kernels/dtype.h"
#include "tests/support/reference_matmul.h"
#include "tests/support/simt/device_memory.h"

namespace kvloom::cuda {

struct MatmulPlans::Library {};
struct MatmulPlans::Plan {};

MatmulPlans::MatmulPlans() = default;
MatmulPlans::~MatmulPlans() = default;

void MatmulPlans::run(const Matmul& op, Queue&) {
  const simt::DeviceMemoryAccess access;
  const std::vector<double> product = reference::multiply(op);
  const std::int64_t stride = op.c_stride == 0 ? op.columns : op.c_stride;
  const auto store = [&]<typename T>(T* c) {
    for (std::int64_t i = 0; i < op.rows; ++i) {
      for (std::int64_t j = 0; j < op.columns; ++j) {
        T& place = c[i * stride + j];
        const T former = op.addend == nullptr ? place : static_cast<const T*>(op.addend)[i * stride + j];
        const double before = op.output == Output::kAccumulate ? static_cast<double>(static_cast<float>(former)) : 0.0;
        place = T(static_cast<float>(before + product[static_cast<std::size_t>(i * op.columns + j)]));
      }
    }
  };
  if (op.output_dtype == DType::kF32) return store(static_cast<float*>(op.c));
  store(static_cast<BFloat16*>(op.c));
}

}  // namespace kvloom::cuda
