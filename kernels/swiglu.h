// Gated unit with SiLU, Shazeer 2020 (arXiv 2002.05202), section 2: silu(gate) * up.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"

namespace kvloom {

// output = silu(gate) * up. gate_up: dtype [rows, 2 * columns], gate first; output: dtype [rows, columns].
struct SwigluForward {
  const void* gate_up;
  void* output;
  std::int64_t rows;
  std::int64_t columns;
  DType dtype = DType::kF32;
};

// grad_gate_up = (layout of gate_up; may be gate_up itself). grad_output: dtype [rows, columns].
struct SwigluBackward {
  const void* gate_up;
  const void* grad_output;
  void* grad_gate_up;
  std::int64_t rows;
  std::int64_t columns;
  DType dtype = DType::kF32;
};

namespace cpu {
void run(const SwigluForward& op);
void run(const SwigluBackward& op);
}  // namespace cpu

namespace cuda {
class Queue;
void run(const SwigluForward& op, Queue& queue);
void run(const SwigluBackward& op, Queue& queue);
}  // namespace cuda

}  // namespace kvloom
