// A communicator that hands every call on to another: a base for those that do something else with some of them.
#pragma once

#include <memory>
#include <span>

#include "parallel/communicator.h"

namespace kvloom::test {

// call(an element of the type).
inline auto typed(DType dtype, const auto& call) {
  switch (dtype) {
    case DType::kF32:
      return call(float{});
    case DType::kBF16:
      return call(BFloat16{});
    case DType::kF64:
      return call(double{});
    case DType::kI32:
      return call(std::int32_t{});
    case DType::kI64:
      return call(std::int64_t{});
    default:
      return call(std::uint8_t{});
  }
}

class ForwardingCommunicator : public Communicator {
 public:
  // `inner` outlives this.
  explicit ForwardingCommunicator(Communicator& inner) : inner_(inner) {}

  int rank() const override { return inner_.rank(); }
  int size() const override { return inner_.size(); }
  void barrier() override { inner_.barrier(); }

 protected:
  void do_all_reduce(void* data, std::size_t count, DType dtype, Reduction reduction) override {
    typed(dtype, [&]<typename T>(T) { inner_.all_reduce(span<T>(data, count), reduction); });
  }
  void do_reduce_scatter(const void* input, void* output, std::size_t count, DType dtype,
                         Reduction reduction) override {
    typed(dtype, [&]<typename T>(T) {
      inner_.reduce_scatter(span<const T>(input, count * ranks()), span<T>(output, count), reduction);
    });
  }
  Transfer do_iall_reduce(void* data, std::size_t count, DType dtype, Reduction reduction) override {
    return typed(dtype, [&]<typename T>(T) { return inner_.iall_reduce(span<T>(data, count), reduction); });
  }
  Transfer do_ireduce_scatter(const void* input, void* output, std::size_t count, DType dtype,
                              Reduction reduction) override {
    return typed(dtype, [&]<typename T>(T) {
      return inner_.ireduce_scatter(span<const T>(input, count * ranks()), span<T>(output, count), reduction);
    });
  }
  Transfer do_ireduce(void* data, std::size_t count, DType dtype, int root, Reduction reduction) override {
    return typed(dtype, [&]<typename T>(T) { return inner_.ireduce(span<T>(data, count), root, reduction); });
  }
  void do_all_gather(const void* input, void* output, std::size_t count, DType dtype) override {
    typed(dtype,
          [&]<typename T>(T) { inner_.all_gather(span<const T>(input, count), span<T>(output, count * ranks())); });
  }
  void do_broadcast(void* data, std::size_t count, DType dtype, int root) override {
    typed(dtype, [&]<typename T>(T) { inner_.broadcast(span<T>(data, count), root); });
  }
  void do_all_to_all(const void* input, void* output, std::size_t count, DType dtype) override {
    typed(dtype, [&]<typename T>(T) {
      inner_.all_to_all(span<const T>(input, count * ranks()), span<T>(output, count * ranks()));
    });
  }
  std::unique_ptr<Communicator> do_split(int color, int key) override { return inner_.split(color, key); }

  Transfer do_isend(const void* data, std::size_t count, DType dtype, int to, int tag) override {
    return typed(dtype, [&]<typename T>(T) { return inner_.isend(span<const T>(data, count), to, tag); });
  }
  Transfer do_irecv(void* data, std::size_t count, DType dtype, int from, int tag) override {
    return typed(dtype, [&]<typename T>(T) { return inner_.irecv(span<T>(data, count), from, tag); });
  }

  template <typename T>
  static std::span<T> span(auto* data, std::size_t count) {
    return {static_cast<T*>(data), count};
  }
  std::size_t ranks() const { return static_cast<std::size_t>(inner_.size()); }
  Communicator& inner() { return inner_; }

 private:
  Communicator& inner_;
};

}  // namespace kvloom::test
