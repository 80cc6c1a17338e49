#include <future>
#include <utility>

#include "core/convert/plan_limits.h"
#include "core/convert/tensor_target.h"

namespace kvloom {
namespace {

std::uint64_t bytes_of(const Shape& shape, DType dtype) {
  return static_cast<std::uint64_t>(element_count(shape)) * size_of(dtype);
}

std::uint64_t total_bytes(std::span<const PlannedTensor> tensors) {
  std::uint64_t bytes = 0;
  for (const PlannedTensor& tensor : tensors) bytes += bytes_of(tensor.shape, tensor.dtype);
  return bytes;
}

// Writes one block while the caller computes the next. The last write's error comes with the next call.
class BackgroundWriter {
 public:
  explicit BackgroundWriter(TensorTarget& target) : target_(target) {}

  void add(const PlannedTensor& tensor, const Rectangle& block, std::vector<std::byte> bytes) {
    wait();
    writing_ = std::async(std::launch::async, [this, &tensor, block, bytes = std::move(bytes)]() mutable {
      target_.add(tensor, block, std::move(bytes));
    });
  }

  void wait() {
    if (writing_.valid()) writing_.get();
  }

 private:
  TensorTarget& target_;
  std::future<void> writing_;
};

}  // namespace

void run_conversion(PlannedConversion& conversion, TensorTarget& target,
                    const std::function<void(const ConversionProgress&)>& progress) {
  conversion.check_left_over();
  const std::span<const PlannedTensor> tensors = conversion.tensors();
  ConversionProgress done{0, total_bytes(tensors)};
  BackgroundWriter writer(target);
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    for (const Rectangle& wanted : target.wanted(tensors[i])) {
      for (const Rectangle& block : blocks_of(wanted, tensors[i].dtype, kBlockBytes)) {
        std::vector<std::byte> bytes(bytes_of(block.shape, tensors[i].dtype));
        conversion.compute(i, block, bytes);
        done.bytes += bytes.size();
        writer.add(tensors[i], block, std::move(bytes));
        if (progress) progress(done);
      }
    }
    // A tensor without elements is a tensor all the same.
    if (element_count(tensors[i].shape) == 0) {
      writer.add(tensors[i], {Shape(tensors[i].shape.size(), 0), tensors[i].shape}, {});
    }
  }
  writer.wait();
  target.finish();
}

}  // namespace kvloom
