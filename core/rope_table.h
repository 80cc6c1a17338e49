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

// Angles are computed in double. Row p is the same for any number of `positions`, which may exceed config.context:
// training, evaluation and decoding rotate alike, however long a prompt or a cache is. So `dynamic` scaling stretches
// the base for config.context over rope_scaling.original_context, once and for all. Hugging Face stretches it anew for
// every length beyond the original context, and keys that are cached keep the base of when they were computed; for
// sequences within the original context, and for those of exactly config.context positions, the two agree.
RopeTable make_rope_table(const ModelConfig& config, std::int64_t positions, Allocator& allocator);

}  // namespace kvloom
