#include "core/convert/tensor_source.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/checkpoint_manifest.h"
#include "core/checkpoint_reader.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

// Calls `run(element offset in the whole, element offset in the rectangle, elements)` for each run of neighbours.
template <typename Run>
void for_each_run(const Shape& shape, const Rectangle& rectangle, const Run& run) {
  if (element_count(rectangle.shape) == 0) return;
  // Trailing axes that are taken whole join the run; the first that is not ends it.
  std::size_t axis = shape.size();
  std::int64_t length = 1;
  std::int64_t stride = 1;
  while (axis > 0) {
    --axis;
    length *= rectangle.shape[axis];
    if (rectangle.shape[axis] != shape[axis]) break;
  }
  Shape at(axis, 0);  // of the axes before the run
  std::vector<std::int64_t> strides(shape.size(), 1);
  for (std::size_t i = shape.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= shape[i];
  }
  std::int64_t base = 0;
  for (std::size_t i = axis; i < shape.size(); ++i) base += rectangle.offset[i] * strides[i];
  for (std::int64_t inside = 0;; inside += length) {
    std::int64_t whole = base;
    for (std::size_t i = 0; i < axis; ++i) whole += (rectangle.offset[i] + at[i]) * strides[i];
    run(whole, inside, length);
    std::size_t carry = axis;
    while (carry > 0 && ++at[carry - 1] == rectangle.shape[carry - 1]) at[--carry] = 0;
    if (carry == 0) return;
  }
}

class CheckpointSource final : public TensorSource {
 public:
  explicit CheckpointSource(CheckpointReader reader)
      : TensorSource(reader.folder().string(), list(reader.manifest())), reader_(std::move(reader)) {}

 private:
  static std::vector<SourceTensor> list(const proto::Manifest& manifest) {
    std::vector<SourceTensor> tensors;
    for (const proto::TensorEntry& entry : manifest.tensors()) {
      tensors.push_back({entry.name(), shape_of(entry.shape()), entry.dtype(), dtype_named(entry.dtype())});
    }
    return tensors;
  }

  void read_checked(const SourceTensor& tensor, const Rectangle& wanted, std::byte* out) override {
    reader_.read(tensor.name, wanted, *tensor.dtype, out);
  }

  CheckpointReader reader_;
};

}  // namespace

TensorSource::TensorSource(std::string where, std::vector<SourceTensor> tensors, std::vector<std::string> unheeded)
    : where_(std::move(where)), tensors_(std::move(tensors)), unheeded_(std::move(unheeded)) {
  for (std::size_t i = 0; i < tensors_.size(); ++i) index_[tensors_[i].name] = i;
}

const SourceTensor* TensorSource::find(const std::string& name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

std::size_t TensorSource::position(const std::string& name) const {
  const auto found = index_.find(name);
  if (found == index_.end()) reject_input("{} has no tensor {}", where_, name);
  return found->second;
}

void TensorSource::read(const SourceTensor& tensor, const Rectangle& wanted, std::span<std::byte> out) {
  if (!tensor.dtype) {
    reject_input("{}: tensor {} is of dtype {}, which kvloom does not compute with", where_, tensor.name,
                 tensor.stored_dtype);
  }
  if (!is_inside(wanted, tensor.shape)) {
    reject_input("{}: {} at {} is not inside tensor {} of shape {}", where_, to_string(wanted.shape),
                 to_string(wanted.offset), tensor.name, to_string(tensor.shape));
  }
  const std::size_t bytes = static_cast<std::size_t>(element_count(wanted.shape)) * size_of(*tensor.dtype);
  if (out.size() != bytes) fail("conversion: {} bytes of tensor {} into {}", bytes, tensor.name, out.size());
  if (bytes > 0) read_checked(tensor, wanted, out.data());
}

std::unique_ptr<TensorSource> open_checkpoint(const std::filesystem::path& folder) {
  return std::make_unique<CheckpointSource>(CheckpointReader(folder));
}

void place_rectangle(const std::byte* from, const Rectangle& at, const Shape& shape, std::size_t element,
                     std::byte* to) {
  for_each_run(shape, at, [&](std::int64_t whole, std::int64_t inside, std::int64_t length) {
    std::memcpy(to + static_cast<std::size_t>(whole) * element, from + static_cast<std::size_t>(inside) * element,
                static_cast<std::size_t>(length) * element);
  });
}

void take_rectangle(const std::byte* from, const Shape& shape, const Rectangle& wanted, std::size_t element,
                    std::byte* to) {
  for_each_run(shape, wanted, [&](std::int64_t whole, std::int64_t inside, std::int64_t length) {
    std::memcpy(to + static_cast<std::size_t>(inside) * element, from + static_cast<std::size_t>(whole) * element,
                static_cast<std::size_t>(length) * element);
  });
}

}  // namespace kvloom
