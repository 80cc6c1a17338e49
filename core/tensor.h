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
  // A copy of host values.
  template <typename T>
  static Tensor of(Allocator& allocator, Shape shape, std::span<const T> values) {
    Tensor tensor = empty(allocator, std::move(shape), DTypeOf<T>::value);
    tensor.assign(values);
    return tensor;
  }

  bool defined() const { return storage_ != nullptr; }
  const Shape& shape() const { return shape_; }
  std::int64_t size(std::size_t axis) const { return shape_.at(axis); }
  std::int64_t count() const { return count_; }
  std::size_t bytes() const { return static_cast<std::size_t>(count_) * size_of(dtype_); }
  DType dtype() const { return dtype_; }
  Device device() const;

  void* data() { return data_; }
  const void* data() const { return data_; }

  // Typed pointers; throws Error when T is not the dtype. Only where the memory is the host's may they be followed.
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

  // Elements from and to the host, wherever the tensor lives; the host waits for the device. `assign` throws Error when
  // the counts differ.
  template <typename T>
  void assign(std::span<const T> values) {
    check_dtype(DTypeOf<T>::value);
    write(values.data(), values.size_bytes());
  }
  template <typename T>
  std::vector<T> values() const {
    check_dtype(DTypeOf<T>::value);
    std::vector<T> result(static_cast<std::size_t>(count_));
    read(result.data());
    return result;
  }

  // This tensor where the host can follow its pointers, else a copy there.
  Tensor on_host(Allocator& host) const;

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
  void write(const void* from, std::size_t size);
  void read(void* to) const;

  std::shared_ptr<Storage> storage_;
  std::byte* data_ = nullptr;
  Shape shape_;
  std::int64_t count_ = 0;
  DType dtype_ = DType::kF32;
};

}  // namespace kvloom
