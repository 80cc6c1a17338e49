// Rotary position embedding, Su et al. 2021 (arXiv 2104.09864), in the half-split layout of Llama and Hugging Face.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"

namespace kvloom {

enum class Rotation : std::uint8_t { kForward, kBackward };  // backward: by the negative angle, the gradient

// data[r, h, :] = data[r, h, :] rotated, in place: with half = head_dim / 2, element d < half pairs with d + half and
// turns by the angle whose cosine and sine are cosine[p, d], sine[p, d] (f32 [positions, half]).
// data: [rows, heads, head_dim] of dtype, rows `stride` elements apart. Row r stands at position
// p = first_position + r % row_period.
struct Rope {
  void* data;
  const float* cosine;
  const float* sine;
  std::int64_t rows;
  std::int64_t heads;
  std::int64_t head_dim;
  std::int64_t stride;
  std::int64_t first_position = 0;
  std::int64_t row_period;
  Rotation rotation = Rotation::kForward;
  DType dtype = DType::kF32;
};

namespace cpu {
void run(const Rope& op);
}  // namespace cpu

namespace cuda {
class Queue;
void run(const Rope& op, Queue& queue);
}  // namespace cuda

}  // namespace kvloom
