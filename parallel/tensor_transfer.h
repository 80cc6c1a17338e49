// Tensors as the typed spans that a communicator takes.
#pragma once

#include <span>

#include "core/tensor.h"
#include "kernels/error.h"
#include "parallel/communicator.h"

namespace kvloom {

// Calls function(span of elements) with the tensor's element type, f32, bf16 or i32.
template <typename Function>
decltype(auto) with_elements(Tensor& tensor, Function&& function) {
  if (tensor.dtype() == DType::kF32) return function(tensor.as<float>());
  if (tensor.dtype() == DType::kBF16) return function(tensor.as<BFloat16>());
  if (tensor.dtype() == DType::kI32) return function(tensor.as<std::int32_t>());
  fail("communicator: tensors of f32, bf16 or i32 travel, not {}", name_of(tensor.dtype()));
}

inline Transfer isend_tensor(Communicator& ranks, Tensor tensor, int to, int tag) {
  return with_elements(tensor, [&]<typename T>(std::span<T> data) { return ranks.isend(data, to, tag); });
}

inline Transfer irecv_tensor(Communicator& ranks, Tensor tensor, int from, int tag) {
  return with_elements(tensor, [&]<typename T>(std::span<T> data) { return ranks.irecv(data, from, tag); });
}

}  // namespace kvloom
