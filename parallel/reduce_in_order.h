// The arithmetic of reductions, for ranks that see one another's memory.
#pragma once

#include <cstddef>
#include <span>

#include "kernels/dtype.h"
#include "parallel/communicator.h"

namespace kvloom {

// output[i] = inputs[0][i] (+ or max) inputs[1][i] ... in that order, for i in [begin, end); bf16 in f32, rounded once.
// `output` may be one of the inputs. Throws Error for a dtype that is not Transferable.
void reduce_in_order(std::span<const void* const> inputs, std::size_t begin, std::size_t end, DType dtype,
                     Reduction reduction, void* output);

}  // namespace kvloom
