#include "parallel/tensor_ranks.h"

#include <utility>

#include "kernels/error.h"
#include "parallel/patience.h"
#include "parallel/tensor_transfer.h"

namespace kvloom {
namespace {

class StartedSum final : public Combining {
 public:
  StartedSum(Tensor partial, Tensor sum, Transfer transfer)
      : partial_(std::move(partial)), sum_(std::move(sum)), transfer_(std::move(transfer)) {}

  Tensor finish() override {
    transfer_.wait();
    return std::move(sum_);
  }

 private:
  Tensor partial_;
  Tensor sum_;
  Transfer transfer_;  // goes before its buffers
};

}  // namespace

TensorRanks::TensorRanks(Communicator& ranks, SequenceParallel sequence_parallel, Allocator& allocator,
                         std::optional<std::chrono::milliseconds> limit)
    : ranks_(ranks), sequence_parallel_(sequence_parallel), allocator_(allocator), limit_(limit) {}

template <typename T>
void TensorRanks::all_reduce(std::span<T> data, Reduction reduction) {
  if (!limit_.has_value()) return ranks_.all_reduce(data, reduction);
  Transfer sum = ranks_.iall_reduce(data, reduction);
  if (!is_done_within(sum, *limit_)) {
    fail("tensor ranks: rank {} of {} has waited {} s for the others' part of a sum", ranks_.rank(), ranks_.size(),
         in_seconds(*limit_));
  }
  sum.wait();
}

std::int64_t TensorRanks::own_rows(std::int64_t rows) const {
  if (!splits_rows()) return rows;
  if (rows % ranks_.size() != 0)
    fail("sequence parallelism: {} ranks cannot share {} rows evenly", ranks_.size(), rows);
  return rows / ranks_.size();
}

Tensor TensorRanks::spread(const Tensor& own) {
  if (!splits_rows()) return own;
  Tensor all = Tensor::empty(allocator_, {own.size(0) * ranks_.size(), own.size(1)}, own.dtype());
  with_elements(all, [&]<typename T>(std::span<T> output) { ranks_.all_gather(own.as<T>(), output); });
  return all;
}

Tensor TensorRanks::combine(Tensor partial) {
  if (!splits_rows()) {
    with_elements(partial, [&]<typename T>(std::span<T> data) { all_reduce(data); });
    return partial;
  }
  Tensor own = Tensor::empty(allocator_, {own_rows(partial.size(0)), partial.size(1)}, partial.dtype());
  with_elements(own, [&]<typename T>(std::span<T> output) {
    ranks_.reduce_scatter(std::span<const T>(partial.as<T>()), output);
  });
  return own;
}

std::unique_ptr<Combining> TensorRanks::start_combine(Tensor partial) {
  if (!splits_rows()) {
    Transfer sum = with_elements(partial, [&]<typename T>(std::span<T> data) { return ranks_.iall_reduce(data); });
    return std::make_unique<StartedSum>(partial, partial, std::move(sum));
  }
  Tensor own = Tensor::empty(allocator_, {own_rows(partial.size(0)), partial.size(1)}, partial.dtype());
  Transfer sum = with_elements(own, [&]<typename T>(std::span<T> output) {
    return ranks_.ireduce_scatter(std::span<const T>(partial.as<T>()), output);
  });
  return std::make_unique<StartedSum>(partial, own, std::move(sum));
}

void TensorRanks::maximum(Tensor& data) { all_reduce(data.as<float>(), Reduction::kMax); }

void TensorRanks::sum(Tensor& data) { all_reduce(data.as<float>()); }

}  // namespace kvloom
