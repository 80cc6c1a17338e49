// A communicator whose sums are formed as a network's may be: equal on every rank of a communicator, but in an order
// that depends on the place in the buffer, on the root and on the communicator.
#pragma once

#include <algorithm>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "tests/support/forwarding_communicator.h"

namespace kvloom::test {

class RotatedSums final : public ForwardingCommunicator {
 public:
  // `inner` outlives this, and so what is split from this.
  explicit RotatedSums(Communicator& inner) : ForwardingCommunicator(inner) {}
  RotatedSums(std::unique_ptr<Communicator> inner, int rotation)
      : ForwardingCommunicator(*inner), owned_(std::move(inner)), rotation_(static_cast<std::size_t>(rotation)) {}

 protected:
  void do_all_reduce(void* data, std::size_t count, DType dtype, Reduction reduction) override {
    if (reduction != Reduction::kSum) return ForwardingCommunicator::do_all_reduce(data, count, dtype, reduction);
    // As around a ring: each part of the buffer begins at another rank.
    typed(dtype, [&]<typename T>(T) {
      sum<T>(span<T>(data, count), [&](std::size_t element) { return element * ranks() / count; });
    });
  }
  Transfer do_iall_reduce(void* data, std::size_t count, DType dtype, Reduction reduction) override {
    do_all_reduce(data, count, dtype, reduction);
    return {};
  }
  Transfer do_ireduce(void* data, std::size_t count, DType dtype, int root, Reduction) override {
    typed(dtype, [&]<typename T>(T) {
      std::vector<T> sums(span<T>(data, count).begin(), span<T>(data, count).end());
      sum<T>(sums, [&](std::size_t) { return static_cast<std::size_t>(root); });
      if (root == rank()) std::copy(sums.begin(), sums.end(), span<T>(data, count).begin());
    });
    return {};
  }
  std::unique_ptr<Communicator> do_split(int color, int key) override {
    return std::make_unique<RotatedSums>(inner().split(color, key), color);
  }

 private:
  // data[i] = the sum over ranks, beginning at rank first(i) + rotation.
  template <typename T>
  void sum(std::span<T> data, const auto& first) {
    using Sum = std::conditional_t<std::is_same_v<T, BFloat16>, float, T>;
    std::vector<T> all(data.size() * ranks());
    inner().all_gather(std::span<const T>(data), std::span<T>(all));
    for (std::size_t i = 0; i < data.size(); ++i) {
      T total{};
      for (std::size_t r = 0; r < ranks(); ++r) {
        const T value = all[(first(i) + rotation_ + r) % ranks() * data.size() + i];
        total = r == 0 ? value : static_cast<T>(static_cast<Sum>(total) + static_cast<Sum>(value));
      }
      data[i] = total;
    }
  }

  std::unique_ptr<Communicator> owned_;
  std::size_t rotation_ = 0;
};

}  // namespace kvloom::test
