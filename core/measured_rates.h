// What benchmarks share: a clock, ceilings that are measured in the same run, and inputs.
#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

#include "core/config.h"
#include "core/tensor.h"

namespace kvloom {

// Seconds until the device has done `work`.
double seconds_of(const Allocator& allocator, const auto& work) {
  allocator.synchronize();
  const auto start = std::chrono::steady_clock::now();
  work();
  allocator.synchronize();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// The best rate of matrix products of `rows` rows by this model's own weights, in operations per second (a multiply-add
// is two).
double measured_product_rate(const ModelConfig& config, std::int64_t rows, DType dtype, Allocator& allocator);

// Bytes per second of memory, beyond the caches of most processors.
struct MemoryRates {
  double copy = 0;  // a byte counts when it is read and when it is written
  double best = 0;  // of that and, on a CPU, of reading alone
};
MemoryRates measured_memory_rates(Allocator& allocator);

// Token ids below `vocab`; other ones in each stream.
std::vector<std::int32_t> random_tokens(std::int64_t count, std::int64_t vocab, std::uint64_t stream);

}  // namespace kvloom
