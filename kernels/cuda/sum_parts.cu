#include "kernels/cuda/sum_parts.h"

#include <algorithm>

#include "kernels/cuda/packs.h"

namespace kvloom::cuda {
namespace {

constexpr int kBlock = 256;
constexpr std::int64_t kMostBlocks = 4096;

__global__ void __launch_bounds__(kBlock)
    sum_parts(const Bf16* parts, Bf16* output, std::int64_t rows, std::int64_t count) {
  for (std::int64_t i = block_index() * kBlock + thread_index(); i < count; i += block_count() * kBlock) {
    float sum = to_float(parts[i]);
    for (std::int64_t row = 1; row < rows; ++row) sum += to_float(parts[row * count + i]);
    output[i] = from_float<Bf16>(sum);
  }
}

}  // namespace

void run(const SumParts& op, CUstream_st* stream) {
  launch_on(stream, "sum_parts", sum_parts,
            {.blocks = std::min(kMostBlocks, ceil_div(op.count, kBlock)), .threads = kBlock},
            reinterpret_cast<const Bf16*>(op.parts), reinterpret_cast<Bf16*>(op.output), op.rows, op.count);
}

}  // namespace kvloom::cuda
