// How the ranks that split every matrix of a layer among them exchange hidden states: the two halves of a
// tensor-parallel region. Layers call it and never ask for ranks; parallel/tensor_ranks.h implements it.
//
// Between regions hidden states are whole on every rank, or with sequence parallelism (Korthikanti et al. 2022, section
// 4.2) each rank has its part of the rows. `spread` enters a region and `combine` leaves it; each is the backward of
// the other.
#pragma once

#include <cstdint>
#include <memory>

#include "core/tensor.h"

namespace kvloom {

// A `combine` under way: what was given belongs to it until it is finished.
class Combining {
 public:
  virtual ~Combining() = default;
  // Once.
  virtual Tensor finish() = 0;
};

class TensorGroup {
 public:
  virtual ~TensorGroup() = default;

  // Of `rows` rows, those that a rank has between regions.
  virtual std::int64_t own_rows(std::int64_t rows) const = 0;
  // All rows, of every rank's own rows. May return its argument.
  virtual Tensor spread(const Tensor& own) = 0;
  // Own rows of the sum over ranks of `partial` (all rows), which may be overwritten and returned.
  virtual Tensor combine(Tensor partial) = 0;
  // The same, started, so that this rank computes meanwhile.
  virtual std::unique_ptr<Combining> start_combine(Tensor partial) = 0;
  // data (f32) = its maximum, or sum, over the ranks.
  virtual void maximum(Tensor& data) = 0;
  virtual void sum(Tensor& data) = 0;
};

}  // namespace kvloom
