#include "kernels/cpu/matmul_onednn.h"

#include <array>
#include <list>
#include <oneapi/dnnl/dnnl.hpp>
#include <unordered_map>
#include <utility>

namespace kvloom::cpu {
namespace {

using dnnl::memory;

// Everything a primitive is compiled for.
using Key = std::array<std::int64_t, 11>;

Key key_of(const Matmul& op) {
  return {op.rows,
          op.columns,
          op.inner,
          op.a_stride,
          op.b_stride,
          op.c_stride,
          static_cast<std::int64_t>(op.transpose_a),
          static_cast<std::int64_t>(op.transpose_b),
          static_cast<std::int64_t>(op.output),
          static_cast<std::int64_t>(op.operand_dtype),
          static_cast<std::int64_t>(op.output_dtype)};
}

memory::data_type data_type_of(DType dtype) {
  return dtype == DType::kF32 ? memory::data_type::f32 : memory::data_type::bf16;
}

memory::desc describe(std::int64_t rows, std::int64_t columns, std::int64_t stride, Transpose transpose, DType dtype) {
  const memory::dims strides = transpose == Transpose::kYes ? memory::dims{1, stride} : memory::dims{stride, 1};
  return {memory::dims{rows, columns}, data_type_of(dtype), strides};
}

struct Product {
  explicit Product(const Matmul& op, const dnnl::engine& engine)
      : a(describe(op.rows, op.inner, op.a_stride, op.transpose_a, op.operand_dtype)),
        b(describe(op.inner, op.columns, op.b_stride, op.transpose_b, op.operand_dtype)),
        c(describe(op.rows, op.columns, op.c_stride, Transpose::kNo, op.output_dtype)) {
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    if (op.output == Output::kAccumulate) {
      dnnl::post_ops after;
      after.append_sum(1.0f);
      attributes.set_post_ops(after);
    }
#if DNNL_VERSION_MAJOR >= 3
    const dnnl::matmul::primitive_desc description(engine, a, b, c, attributes);
#else
    const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(a, b, c), attributes, engine);
#endif
    scratchpad = description.scratchpad_desc();
    primitive = dnnl::matmul(description);
  }

  memory::desc a, b, c, scratchpad;
  dnnl::matmul primitive;
};

// What one thread keeps between calls: its last primitives and the scratchpad that they share.
class Workspace {
 public:
  void multiply(const Matmul& op) {
    const Product& product = find(op);
    if (!scratchpad_ || scratchpad_.get_desc().get_size() < product.scratchpad.get_size()) {
      scratchpad_ = memory(product.scratchpad, engine_);
    }
    product.primitive.execute(
        stream_, {{DNNL_ARG_SRC, memory(product.a, engine_, const_cast<void*>(op.a))},
                  {DNNL_ARG_WEIGHTS, memory(product.b, engine_, const_cast<void*>(op.b))},
                  {DNNL_ARG_DST, memory(product.c, engine_, op.c)},
                  {DNNL_ARG_SCRATCHPAD, memory(product.scratchpad, engine_, scratchpad_.get_data_handle())}});
    stream_.wait();
  }

 private:
  static constexpr std::size_t kProducts = 256;

  struct Hash {
    std::size_t operator()(const Key& key) const {
      std::size_t hash = 0;
      for (const std::int64_t part : key) hash = (hash ^ static_cast<std::size_t>(part)) * 0x9e3779b97f4a7c15u;
      return hash ^ (hash >> 32);
    }
  };
  using Uses = std::list<std::pair<Key, Product>>;

  const Product& find(const Matmul& op) {
    const Key key = key_of(op);
    if (const auto known = places_.find(key); known != places_.end()) {
      latest_first_.splice(latest_first_.begin(), latest_first_, known->second);
      return known->second->second;
    }
    latest_first_.emplace_front(key, Product(op, engine_));
    places_[key] = latest_first_.begin();
    if (latest_first_.size() > kProducts) {
      places_.erase(latest_first_.back().first);
      latest_first_.pop_back();
    }
    return latest_first_.front().second;
  }

  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_{engine_};
  memory scratchpad_;
  Uses latest_first_;
  std::unordered_map<Key, Uses::iterator, Hash> places_;
};

}  // namespace

void multiply_with_onednn(const Matmul& op) {
  try {
    static thread_local Workspace workspace;
    workspace.multiply(op);
  } catch (const dnnl::error& error) {
    fail("oneDNN matmul [{}, {}] x [{}, {}], operands {}, result {}: {} (status {})", op.rows, op.inner, op.inner,
         op.columns, name_of(op.operand_dtype), name_of(op.output_dtype), error.what(), static_cast<int>(error.status));
  }
}

}  // namespace kvloom::cpu
