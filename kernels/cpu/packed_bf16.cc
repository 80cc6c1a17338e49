// Which kernels this processor has for bf16 input.
#include <hwy/targets.h>

#include <vector>

#include "kernels/cpu/packed_amx.h"
#include "kernels/cpu/packed_avx512.h"
#include "kernels/cpu/packed_kernels.h"

namespace kvloom::cpu {

std::span<const PackedKernels> bf16_kernels() {
  static const std::vector<PackedKernels> kernels = [] {
    std::vector<PackedKernels> all;
    const bool wide = (hwy::SupportedTargets() & HWY_AVX3) != 0;
    if (wide && processor_has_amx()) all.push_back(amx_kernels());
    if (wide && processor_has_avx512_bf16()) all.push_back(avx512_bf16_kernels());
    all.push_back(widening_kernels(DType::kBF16));
    return all;
  }();
  return kernels;
}

}  // namespace kvloom::cpu
