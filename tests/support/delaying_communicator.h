// A communicator whose sends and sums begin late at random, in those that are split from it, too.
#pragma once

#include <chrono>
#include <memory>
#include <random>
#include <thread>
#include <utility>

#include "tests/support/forwarding_communicator.h"

namespace kvloom::test {

class DelayingCommunicator final : public ForwardingCommunicator {
 public:
  // `inner` outlives this. Delays are up to `most`; most calls have none.
  DelayingCommunicator(Communicator& inner, std::chrono::microseconds most, std::uint64_t seed)
      : ForwardingCommunicator(inner), most_(most), random_(seed) {}
  DelayingCommunicator(std::unique_ptr<Communicator> inner, std::chrono::microseconds most, std::uint64_t seed)
      : ForwardingCommunicator(*inner), own_(std::move(inner)), most_(most), random_(seed) {}

 protected:
  Transfer do_isend(const void* data, std::size_t count, DType dtype, int to, int tag) override {
    wait();
    return ForwardingCommunicator::do_isend(data, count, dtype, to, tag);
  }
  void do_all_reduce(void* data, std::size_t count, DType dtype, Reduction reduction) override {
    wait();
    ForwardingCommunicator::do_all_reduce(data, count, dtype, reduction);
  }
  std::unique_ptr<Communicator> do_split(int color, int key) override {
    return std::make_unique<DelayingCommunicator>(ForwardingCommunicator::do_split(color, key), most_, random_());
  }

 private:
  void wait() {
    if (random_() % 4 > 0) return;
    std::this_thread::sleep_for(std::chrono::microseconds(random_() % static_cast<std::uint64_t>(most_.count())));
  }

  std::unique_ptr<Communicator> own_;
  std::chrono::microseconds most_;
  std::mt19937_64 random_;
};

}  // namespace kvloom::test
