// Kernels of PackedLinear for processors with AVX-512's products of bf16.
#pragma once

#include "kernels/cpu/packed_kernels.h"

namespace kvloom::cpu {

bool processor_has_avx512_bf16();

PackedKernels avx512_bf16_kernels();

}  // namespace kvloom::cpu
