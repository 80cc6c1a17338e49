#include "core/tensor.h"

#include <fmt/ranges.h>

#include <cstring>
#include <functional>
#include <numeric>

#include "kernels/transfer.h"

namespace kvloom {

struct Tensor::Storage {
  Storage(Allocator& from, std::size_t size) : allocator(from), bytes(size), block(from.allocate(size)) {}
  ~Storage() { allocator.release(block, bytes); }
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  Allocator& allocator;
  std::size_t bytes;
  void* block;
};

std::int64_t element_count(const Shape& shape) {
  return std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
}

std::string to_string(const Shape& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

Tensor Tensor::empty(Allocator& allocator, Shape shape, DType dtype) {
  Tensor tensor;
  tensor.count_ = element_count(shape);
  tensor.shape_ = std::move(shape);
  tensor.dtype_ = dtype;
  tensor.storage_ = std::make_shared<Storage>(allocator, tensor.bytes());
  tensor.data_ = static_cast<std::byte*>(tensor.storage_->block);
  return tensor;
}

Tensor Tensor::zeros(Allocator& allocator, Shape shape, DType dtype) {
  Tensor tensor = empty(allocator, std::move(shape), dtype);
  tensor.fill_zero();
  return tensor;
}

Device Tensor::device() const { return storage_ == nullptr ? Device{} : storage_->allocator.device(); }

Tensor Tensor::rows(std::int64_t begin, std::int64_t end) const {
  if (shape_.empty() || begin < 0 || end < begin || end > shape_[0]) {
    fail("tensor: rows [{}, {}) of shape {}", begin, end, to_string(shape_));
  }
  Shape shape = shape_;
  shape[0] = end - begin;
  const std::int64_t row = shape_[0] == 0 ? 0 : count_ / shape_[0];
  return view(begin * row, std::move(shape));
}

Tensor Tensor::reshaped(Shape shape) const {
  if (element_count(shape) != count_) fail("tensor: cannot see {} as {}", to_string(shape_), to_string(shape));
  return view(0, std::move(shape));
}

Tensor Tensor::view(std::int64_t offset, Shape shape) const {
  const std::int64_t count = element_count(shape);
  if (offset < 0 || offset + count > count_) {
    fail("tensor: view of {} from element {} of {}", to_string(shape), offset, to_string(shape_));
  }
  Tensor result = *this;
  result.data_ += static_cast<std::size_t>(offset) * size_of(dtype_);
  result.shape_ = std::move(shape);
  result.count_ = count;
  return result;
}

void Tensor::fill_zero() {
  if (count_ == 0) return;
  if (device().kind == Device::Kind::kCpu) {
    std::memset(data_, 0, bytes());
  } else {
    cuda::run(FillZero{data_, bytes()}, *device().queue);
  }
}

void Tensor::write(const void* from, std::size_t size) {
  if (size != bytes()) fail("tensor: {} bytes for {} of {}", size, to_string(shape_), name_of(dtype_));
  if (count_ == 0) return;
  if (device().kind == Device::Kind::kCpu) {
    std::memcpy(data_, from, size);
  } else {
    cuda::run(CopyBytes{data_, from, size}, *device().queue);
  }
}

void Tensor::read(void* to) const {
  if (count_ == 0) return;
  if (device().kind == Device::Kind::kCpu) {
    std::memcpy(to, data_, bytes());
  } else {
    cuda::run(CopyBytes{to, data_, bytes()}, *device().queue);
  }
}

Tensor Tensor::on_host(Allocator& host) const {
  if (device().kind == Device::Kind::kCpu) return *this;
  Tensor copy = empty(host, shape_, dtype_);
  read(copy.data());
  return copy;
}

void Tensor::check_dtype(DType wanted) const {
  if (wanted != dtype_) fail("tensor: {} holds {}, read as {}", to_string(shape_), name_of(dtype_), name_of(wanted));
}

}  // namespace kvloom
