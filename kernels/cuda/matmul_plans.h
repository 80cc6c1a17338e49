// Matrix products through cuBLASLt, with the library's choice of algorithm kept by shape.
#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <memory>

#include "kernels/cuda/queue.h"
#include "kernels/matmul.h"

namespace kvloom::cuda {

// How f32 operands are multiplied.
enum class F32Products : std::uint8_t {
  kExact,  // as f32: what tests compare with the CPU
  kTf32,   // with 10 bits of mantissa on tensor cores, several times as fast
};

class MatmulPlans {
 public:
  MatmulPlans();
  ~MatmulPlans();
  MatmulPlans(const MatmulPlans&) = delete;
  MatmulPlans& operator=(const MatmulPlans&) = delete;

  void set_f32_products(F32Products products) { f32_products_ = products; }

  // Throws Error naming cuBLASLt's call and the sizes.
  void run(const Matmul& op, Queue& queue);

 private:
  struct Library;
  struct Plan;
  struct Key {
    std::int64_t rows, columns, inner, a_stride, b_stride, c_stride;
    Transpose transpose_a, transpose_b;
    Output output;
    DType operand_dtype, output_dtype;
    F32Products f32_products;
    int a_alignment, b_alignment, c_alignment;  // in bytes, a power of two
    auto operator<=>(const Key&) const = default;
  };

  Key key_of(const Matmul& op) const;
  std::unique_ptr<Plan> make_plan(const Key& key);

  std::unique_ptr<Library> library_;  // from the first product on; outlives the plans
  std::map<Key, std::unique_ptr<Plan>> plans_;
  F32Products f32_products_ = F32Products::kExact;
};

}  // namespace kvloom::cuda
