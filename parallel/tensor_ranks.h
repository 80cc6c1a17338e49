// The ranks that split every matrix of a layer among them, over a communicator (core/tensor_group.h).
#pragma once

#include <chrono>
#include <optional>
#include <span>

#include "core/allocator.h"
#include "core/tensor_group.h"
#include "parallel/communicator.h"

namespace kvloom {

enum class SequenceParallel : std::uint8_t {
  kNo,   // hidden states are whole on every rank between regions: one all-reduce a region
  kYes,  // each rank has its part of the rows: a reduce-scatter and an all-gather, and norms of a part only
};

class TensorRanks final : public TensorGroup {
 public:
  // Both outlive this. `ranks` holds only the ranks that share the matrices. Where there is a limit, sums over all rows
  // that take longer throw Error.
  TensorRanks(Communicator& ranks, SequenceParallel sequence_parallel, Allocator& allocator,
              std::optional<std::chrono::milliseconds> limit = {});

  // With sequence parallelism throws Error unless the ranks divide `rows`.
  std::int64_t own_rows(std::int64_t rows) const override;
  Tensor spread(const Tensor& own) override;
  Tensor combine(Tensor partial) override;
  std::unique_ptr<Combining> start_combine(Tensor partial) override;
  void maximum(Tensor& data) override;
  void sum(Tensor& data) override;

 private:
  template <typename T>
  void all_reduce(std::span<T> data, Reduction reduction = Reduction::kSum);
  bool splits_rows() const { return sequence_parallel_ == SequenceParallel::kYes; }

  Communicator& ranks_;
  SequenceParallel sequence_parallel_;
  Allocator& allocator_;
  std::optional<std::chrono::milliseconds> limit_;
};

}  // namespace kvloom
