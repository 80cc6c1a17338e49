// A dense row-major array on a device. Copies share the memory; `Tensor::rows` is a view of it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/allocator.h"
#include "core/device.h"
#include "kernels/dtype.h"

namespace kvloom {

using Shape = std::vector<std::int64_t>;

std::int64_t element_count(const Shape& shape);
std::string to_string(const Shape& shape);  // "[4, 8, 2]"

class Tensor {
 public:
  Tensor() = default;  // holds nothing; defined() is false

  // Uninitialised, or all bits zero. The allocator outlives the tensor.
  static Tensor empty(Allocator& allocator, Shape shape, DType dtype);
  static Tensor zeros(Allocator& allocator, Shape shape, DType dtype);

  bool defined() const { return storage_ != nullptr; }
  const Shape& shape() const { return shape_; }
  std::int64_t size(std::size_t axis) const { return shape_.at(axis); }
  std::int64_t count() const { return count_; }
  std::size_t bytes() const { return static_cast<std::size_t>(count_) * size_of(dtype_); }
  DType dtype() const { return dtype_; }
  Device device() const;

  void* data() { return data_; }
  const void* data() const { return data_; }

  // Typed access to host memory; throws Error when T is not the dtype.
  template <typename T>
  std::span<T> as() {
    check_dtype(DTypeOf<T>::value);
    return {reinterpret_cast<T*>(data_), static_cast<std::size_t>(count_)};
  }
  template <typename T>
  std::span<const T> as() const {
    check_dtype(DTypeOf<T>::value);
    return {reinterpret_cast<const T*>(data_), static_cast<std::size_t>(count_)};
  }

  // A view of [begin, end) along the first axis.
  Tensor rows(std::int64_t begin, std::int64_t end) const;
  // A view of the same elements; the counts must agree.
  Tensor reshaped(Shape shape) const;
  // A view of `element_count(shape)` elements from element `offset` on.
  Tensor view(std::int64_t offset, Shape shape) const;

  void fill_zero();

 private:
  struct Storage;
  void check_dtype(DType wanted) const;

  std::shared_ptr<Storage> storage_;
  std::byte* data_ = nullptr;
  Shape shape_;
  std::int64_t count_ = 0;
  DType dtype_ = DType::kF32;
};

}  // namespace kvloom
