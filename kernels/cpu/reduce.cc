#include "kernels/reduce.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cpu/vector_math.h"

namespace kvloom::cpu {
namespace {

constexpr std::int64_t kChunk = 1 << 14;  // fixed, so that sums never depend on the number of threads

template <typename T>
void max_change(const MaxChange& op) {
  const T* a = static_cast<const T*>(op.a);
  const T* b = static_cast<const T*>(op.b);
  float change = 0;
  float size = 0;
  // A maximum passes over NaN, so those are looked for apart.
  int change_is_nan = 0;
  int size_is_nan = 0;
#pragma omp parallel for simd schedule(static) reduction(max             \
                                                         : change, size) \
    reduction(|                                                          \
              : change_is_nan, size_is_nan) if (op.count > 2 * kChunk)
  for (std::int64_t i = 0; i < op.count; ++i) {
    const float x = load(a, i);
    const float difference = x - load(b, i);
    change = std::max(change, std::fabs(difference));
    size = std::max(size, std::fabs(x));
    change_is_nan |= static_cast<int>(difference != difference);
    size_is_nan |= static_cast<int>(x != x);
  }
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  *op.change_result = change_is_nan != 0 ? kNaN : change;
  *op.size_result = size_is_nan != 0 ? kNaN : size;
}

}  // namespace

void run(const SumOfSquares& op) {
  const std::int64_t chunks = (op.count + kChunk - 1) / kChunk;
  std::vector<double> sums(static_cast<std::size_t>(chunks), 0.0);
#pragma omp parallel for schedule(static) if (chunks > 2)
  for (std::int64_t n = 0; n < chunks; ++n) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t i = n * kChunk; i < std::min(op.count, (n + 1) * kChunk); ++i) {
      sum += static_cast<double>(op.data[i]) * static_cast<double>(op.data[i]);
    }
    sums[static_cast<std::size_t>(n)] = sum;
  }
  *op.result = 0;
  for (const double sum : sums) *op.result += sum;
}

void run(const MaxChange& op) {
  with_element_type(op.dtype, "max_change", [&]<typename T>(T*) { max_change<T>(op); });
}

}  // namespace kvloom::cpu
