// Kernels of PackedLinear for processors with AMX.
#pragma once

#include "kernels/cpu/packed_kernels.h"

namespace kvloom::cpu {

// Whether the processor multiplies bf16 by tiles and Linux lets this process.
bool processor_has_amx();

PackedKernels amx_kernels();

}  // namespace kvloom::cpu
