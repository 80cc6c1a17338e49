// A matrix packed for inference (kernels/packed_linear.h), and what is computed with it.
#pragma once

#include <span>

#include "core/tensor.h"
#include "kernels/packed_linear.h"

namespace kvloom {

class PackedWeight {
 public:
  PackedWeight() = default;  // holds nothing; defined() is false
  // Room for a matrix [outputs, inputs]; its rows are packed before it is used. Throws Error when the allocator's
  // device is a GPU, which multiplies matrices as they are.
  PackedWeight(Allocator& allocator, const PackedShape& shape);

  bool defined() const { return storage_.defined(); }
  const PackedShape& shape() const { return shape_; }
  std::int64_t outputs() const { return shape_.outputs; }
  std::size_t bytes() const { return storage_.bytes(); }
  const void* data() const { return storage_.data(); }

  // Rows [first_output, ...) = `rows`, f32 or bf16 [.., inputs], rounded to the format.
  void pack(std::int64_t first_output, const Tensor& rows);

 private:
  PackedShape shape_;
  Tensor storage_;  // u8
};

namespace ops {

// output [rows, inputs] = rows of the matrix by tokens i32 [rows], zero for tokens beyond it.
void packed_embedding(const Tensor& tokens, const PackedWeight& table, Tensor& output);

// One product of a call: output [rows, outputs] = input W^T (+ bias f32 [outputs]) (+ addend of output's shape and
// dtype, which may be output itself). Bias and addend may be undefined.
struct PackedProduct {
  const PackedWeight& weight;
  Tensor& output;
  Tensor bias = {};
  Tensor addend = {};
};

// Every product of one input [rows, inputs]. Each row's bits depend on that row alone.
void packed_linear(const Tensor& input, std::span<const PackedProduct> products);

}  // namespace ops
}  // namespace kvloom
