// Which kernels this processor has for bf16 input.
#include <vector>

#include "kernels/cpu/packed_kernels.h"

namespace kvloom::cpu {

std::span<const PackedKernels> bf16_kernels() {
  static const std::vector<PackedKernels> kernels = {widening_kernels(DType::kBF16)};
  return kernels;
}

}  // namespace kvloom::cpu
