// Matrix products through cuBLASLt, f32 as the queue's precision says and bf16 with sums in f32, with the library's
// choice of algorithm kept by shape.
#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <memory>

#include "kernels/cuda/queue.h"
#include "kernels/matmul.h"

namespace kvloom::cuda {

class MatmulPlans {
 public:
  MatmulPlans();
  ~MatmulPlans();
  MatmulPlans(const MatmulPlans&) = delete;
  MatmulPlans& operator=(const MatmulPlans&) = delete;

  // op without row sums, and with a bias only where the result is f32 and the bias lies at a multiple of 16 bytes.
  // False, with nothing done, where cuBLASLt does not take the bias along with the product. Throws Error naming
  // cuBLASLt's call and the sizes.
  [[nodiscard]] bool run(const Matmul& op, Queue& queue);

 private:
  struct Library;
  struct Plan;
  enum class Epilogue : std::uint8_t { kNone, kBias };
  struct Key {
    std::int64_t rows, columns, inner, a_stride, b_stride, c_stride;
    Transpose transpose_a, transpose_b;
    Output output;
    DType operand_dtype, output_dtype;
    MatmulPrecision precision;
    Epilogue epilogue;
    int a_alignment, b_alignment, c_alignment, addend_alignment;  // in bytes, powers of two
    auto operator<=>(const Key&) const = default;
  };

  static Key key_of(const Matmul& op, MatmulPrecision precision);
  std::unique_ptr<Plan> make_plan(const Key& key, const float* bias);
  void multiply(const Plan& plan, const Matmul& op, Queue& queue);

  std::unique_ptr<Library> library_;  // from the first product on; outlives the plans
  std::map<Key, std::unique_ptr<Plan>> plans_;
};

}  // namespace kvloom::cuda
