// Where the keys and values of a sequence lie: a kernel is compiled once for each, so that rows that simply follow one
// another cost no look at a table. For .cu files.
#pragma once

#include <cstdint>

#include "kernels/attention.h"
#include "kernels/cuda/attention_span.h"
#include "kernels/cuda/device.h"

namespace kvloom::cuda {

// at(j) is row j's first element of a KV head, offset(j) elements from `base`: as far as that of a key is from its
// base, that of the value is from its own. offset_in(j, range) is the same where j is inside the range; elsewhere it is
// some number, found without looking for a row outside.
template <typename T>
struct DenseRows {
  const T* base;
  std::int64_t stride;

  __device__ __forceinline__ std::int64_t offset(std::int64_t j) const { return j * stride; }
  __device__ __forceinline__ const T* at(std::int64_t j) const { return base + offset(j); }
  __device__ __forceinline__ std::int64_t offset_in(int j, Range /*range*/) const { return offset(j); }
};

template <typename T>
struct PagedRows {
  const T* base;
  std::int64_t stride;
  const std::int32_t* pages;  // the sequence's
  int page_bits;

  // In 32 bits: no GPU has room for 2^32 rows.
  __device__ __forceinline__ std::int64_t offset(std::int64_t j) const {
    const auto position = static_cast<std::uint32_t>(j);
    const auto page = static_cast<std::uint32_t>(pages[position >> page_bits]);
    return ((page << page_bits) + (position & ((1u << page_bits) - 1))) * stride;
  }
  __device__ __forceinline__ const T* at(std::int64_t j) const { return base + offset(j); }
  __device__ __forceinline__ std::int64_t offset_in(int j, Range range) const { return offset(range.nearest(j)); }
};

// Kernels take one of these and ask it for the rows of `data`, which is op.key or op.value.
struct DenseKeys {
  template <typename T>
  __device__ __forceinline__ DenseRows<T> rows(const AttentionForward& op, const void* data, std::int64_t sequence,
                                               std::int64_t kv_head) const {
    const AttentionShape& shape = op.shape;
    return {static_cast<const T*>(data) + sequence * shape.key_batch_stride + kv_head * shape.head_dim,
            shape.key_stride};
  }
};

struct PagedKeys {
  int page_bits;

  template <typename T>
  __device__ __forceinline__ PagedRows<T> rows(const AttentionForward& op, const void* data, std::int64_t sequence,
                                               std::int64_t kv_head) const {
    const AttentionShape& shape = op.shape;
    return {static_cast<const T*>(data) + kv_head * shape.head_dim, shape.key_stride,
            op.page_table.pages + sequence * op.page_table.pages_per_sequence, page_bits};
  }
};

// Calls body(keys) with DenseKeys or PagedKeys.
template <typename Body>
void with_key_layout(const AttentionForward& op, Body&& body) {
  if (op.page_table.pages == nullptr) return body(DenseKeys{});
  body(PagedKeys{page_bits(op.page_table)});
}

}  // namespace kvloom::cuda
