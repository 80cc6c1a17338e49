#include "parallel/gradient_buckets.h"

#include <algorithm>
#include <iterator>

#include "kernels/error.h"

namespace kvloom {

GradientBuckets::GradientBuckets(const Model& model, ReplicaGradients& replicas, DataReplicas& data,
                                 ModelGradients& gradients, std::int64_t bucket_elements)
    : model_(model),
      replicas_(replicas),
      data_(data),
      gradients_(gradients),
      bucket_elements_(bucket_elements),
      taken_(static_cast<std::size_t>(model.config().layers) + 2, false) {
  if (bucket_elements < 1) fail("gradient buckets of {} elements", bucket_elements);
}

void GradientBuckets::complete(int part) {
  take(part);
  // Some transports move data only when asked.
  for (Transfer& transfer : started_) transfer.done();
}

void GradientBuckets::finish() {
  for (int part = static_cast<int>(model_.config().layers); part >= kEmbeddingPart; --part) {
    if (!taken_[static_cast<std::size_t>(part - kEmbeddingPart)]) take(part);
  }
  start(waiting_);
  waiting_ = {0, 0};
  wait_all(started_);
  started_.clear();
}

void GradientBuckets::take(int part) {
  std::vector<bool>::reference taken = taken_.at(static_cast<std::size_t>(part - kEmbeddingPart));
  if (taken) fail("gradient buckets: part {} is complete a second time", part);
  taken = true;
  const ElementRange range = range_of(part);
  if (range.size() == 0) return;
  replicas_.sum_part(part, gradients_);
  if (range.end != waiting_.begin) {
    start(waiting_);
    waiting_ = range;
  } else {
    waiting_.begin = range.begin;
  }
  start_full_buckets();
}

void GradientBuckets::start_full_buckets() {
  while (waiting_.size() >= bucket_elements_) {
    const std::int64_t begin = waiting_.end - bucket_elements_;
    start({begin, waiting_.end});
    waiting_.end = begin;
  }
}

void GradientBuckets::start(ElementRange range) {
  std::vector<Transfer> transfers = data_.start_sum(range, gradients_);
  std::ranges::move(transfers, std::back_inserter(started_));
}

// A part's parameters are neighbours.
ElementRange GradientBuckets::range_of(int part) const {
  ElementRange range{0, 0};
  for (const Parameter& parameter : model_.layout().all()) {
    if (parameter.part != part) continue;
    if (range.size() == 0) range.begin = parameter.offset;
    range.end = parameter.offset + element_count(parameter.shape);
  }
  return range;
}

}  // namespace kvloom
