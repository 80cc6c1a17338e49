// The arithmetic of a bf16 reduction over ranks on a GPU.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"

struct CUstream_st;  // what cudaStream_t points to

namespace kvloom::cuda {

// output[i] = parts[0][i] + parts[1][i] + ..., formed in f32 in that order and rounded once. `parts` is [rows, count],
// bf16, device memory; `output` [count] may be one of its rows. Throws Error when the launch is refused.
struct SumParts {
  const BFloat16* parts;
  BFloat16* output;
  std::int64_t rows;
  std::int64_t count;
};

void run(const SumParts& op, CUstream_st* stream);

}  // namespace kvloom::cuda
