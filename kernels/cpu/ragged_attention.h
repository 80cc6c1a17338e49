// Ragged attention by products of one's choice.
#pragma once

#include "kernels/cpu/bf16_products.h"
#include "kernels/ragged_attention.h"

namespace kvloom::cpu {

// cpu::run(op) by `products`, of a call whose queries are bf16 and whose keys and values are not f32; by f32 arithmetic
// where there are none.
void attend_ragged(const RaggedAttention& op, const Bf16Products* products);

}  // namespace kvloom::cpu
