// The one door to oneDNN.
#pragma once

#include "kernels/matmul.h"

namespace kvloom::cpu {

// Any product with rows, columns and inner > 0 and strides filled in. Throws Error naming oneDNN and the sizes.
void multiply_with_onednn(const Matmul& op);

}  // namespace kvloom::cpu
