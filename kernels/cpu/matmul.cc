// The one file that touches oneDNN.
#include "kernels/matmul.h"

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <oneapi/dnnl/dnnl.hpp>
#include <tuple>
#include <unordered_map>

#include "kernels/cpu/few_rows.h"
#include "kernels/error.h"

namespace kvloom::cpu {
namespace {

using Dims = dnnl::memory::dims;

struct Key {
  std::int64_t rows, columns, inner, a_stride, b_stride, c_stride;
  Transpose transpose_a, transpose_b;
  Output output;
  DType operand_dtype, output_dtype;

  auto tie() const {
    return std::tie(rows, columns, inner, a_stride, b_stride, c_stride, transpose_a, transpose_b, output, operand_dtype,
                    output_dtype);
  }
  bool operator<(const Key& other) const { return tie() < other.tie(); }
};

struct Prepared {
  dnnl::matmul primitive;
  dnnl::memory::desc a, b, c, scratchpad;
};

dnnl::memory::data_type type_of(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return dnnl::memory::data_type::f32;
    case DType::kBF16:
      return dnnl::memory::data_type::bf16;
    default:
      fail("matmul: multiplies f32 or bf16, not {}", name_of(dtype));
  }
}

// A matrix as the product sees it: transposing swaps the strides, not the data.
dnnl::memory::desc describe(std::int64_t rows, std::int64_t columns, std::int64_t stride, Transpose transpose,
                            DType dtype) {
  const Dims strides = transpose == Transpose::kYes ? Dims{1, stride} : Dims{stride, 1};
  return {Dims{rows, columns}, type_of(dtype), strides};
}

Prepared prepare(const Key& key, const dnnl::engine& engine) {
  Prepared prepared;
  prepared.a = describe(key.rows, key.inner, key.a_stride, key.transpose_a, key.operand_dtype);
  prepared.b = describe(key.inner, key.columns, key.b_stride, key.transpose_b, key.operand_dtype);
  prepared.c = describe(key.rows, key.columns, key.c_stride, Transpose::kNo, key.output_dtype);
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  if (key.output == Output::kAccumulate) {
    dnnl::post_ops sum;
    sum.append_sum(1.0f);
    attributes.set_post_ops(sum);
  }
#if DNNL_VERSION_MAJOR >= 3
  const dnnl::matmul::primitive_desc description(engine, prepared.a, prepared.b, prepared.c, attributes);
#else
  const dnnl::matmul::primitive_desc description({prepared.a, prepared.b, prepared.c}, attributes, engine);
#endif
  prepared.primitive = dnnl::matmul(description);
  prepared.scratchpad = description.scratchpad_desc();
  return prepared;
}

// Primitives by shape, one set a thread: executing them needs no lock then.
class Products {
 public:
  void run(const Key& key, const void* a, const void* b, void* c) {
    if (cache_.size() > kMostPrimitives) cache_.clear();
    auto found = cache_.find(key);
    if (found == cache_.end()) found = cache_.emplace(key, prepare(key, engine_)).first;
    const Prepared& prepared = found->second;
    if (scratchpad_.size() < prepared.scratchpad.get_size()) scratchpad_.resize(prepared.scratchpad.get_size());
    found->second.primitive.execute(
        stream_, {{DNNL_ARG_SRC, dnnl::memory(prepared.a, engine_, const_cast<void*>(a))},
                  {DNNL_ARG_WEIGHTS, dnnl::memory(prepared.b, engine_, const_cast<void*>(b))},
                  {DNNL_ARG_DST, dnnl::memory(prepared.c, engine_, c)},
                  {DNNL_ARG_SCRATCHPAD, dnnl::memory(prepared.scratchpad, engine_, scratchpad_.data())}});
    stream_.wait();
  }

 private:
  static constexpr std::size_t kMostPrimitives = 512;

  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_{engine_};
  std::map<Key, Prepared> cache_;
  std::vector<std::byte> scratchpad_;
};

std::int64_t stored_columns(Transpose transpose, std::int64_t rows, std::int64_t columns) {
  return transpose == Transpose::kYes ? rows : columns;
}

Key key_of(const Matmul& op) {
  return {.rows = op.rows,
          .columns = op.columns,
          .inner = op.inner,
          .a_stride = op.a_stride > 0 ? op.a_stride : stored_columns(op.transpose_a, op.rows, op.inner),
          .b_stride = op.b_stride > 0 ? op.b_stride : stored_columns(op.transpose_b, op.inner, op.columns),
          .c_stride = op.c_stride > 0 ? op.c_stride : op.columns,
          .transpose_a = op.transpose_a,
          .transpose_b = op.transpose_b,
          .output = op.output,
          .operand_dtype = op.operand_dtype,
          .output_dtype = op.output_dtype};
}

void clear_output(const Matmul& op, const Key& key) {
  for (std::int64_t r = 0; r < op.rows; ++r) {
    std::memset(static_cast<std::byte*>(op.c) + static_cast<std::size_t>(r * key.c_stride) * size_of(op.output_dtype),
                0, static_cast<std::size_t>(op.columns) * size_of(op.output_dtype));
  }
}

}  // namespace

void run(const Matmul& op) {
  if (op.rows == 0 || op.columns == 0) return;
  const Key key = key_of(op);
  if (op.inner == 0) {
    if (op.output == Output::kOverwrite) clear_output(op, key);
    return;
  }
  if (op.rows <= kFewRows && op.transpose_a == Transpose::kNo && op.transpose_b == Transpose::kYes) {
    return multiply_few_rows(op, key.a_stride, key.b_stride, key.c_stride);
  }
  try {
    thread_local Products products;
    products.run(key, op.a, op.b, op.c);
  } catch (const dnnl::error& error) {
    fail("matmul: oneDNN refused [{}, {}] x [{}, {}] of {} into {}: {}", op.rows, op.inner, op.inner, op.columns,
         name_of(op.operand_dtype), name_of(op.output_dtype), error.what());
  }
}

}  // namespace kvloom::cpu
