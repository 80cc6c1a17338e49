// Cosines and sines of rotary embedding for every position, with the scaling variants of Hugging Face's `rope_scaling`.
#pragma once

#include <cstdint>

#include "core/config.h"
#include "core/tensor.h"

namespace kvloom {

struct RopeTable {
  Tensor cosine;  // f32 [positions, head_dim / 2]
  Tensor sine;
};

// Angles are computed in double. `positions` may exceed config.context, as for a longer prompt; `dynamic` scaling then
// stretches the base for that length (NTK by position count, as Hugging Face computes it for a prompt of that length).
RopeTable make_rope_table(const ModelConfig& config, std::int64_t positions, Allocator& allocator);

}  // namespace kvloom
