// A communicator seen through another one's device buffers: what a test gives and takes lies in host memory, what the
// inner communicator sees lies on the GPU, and only the order of the compute stream keeps them apart.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "core/cuda_stream.h"
#include "parallel/communicator.h"

namespace kvloom::test {

class DeviceBuffers final : public Communicator {
 public:
  DeviceBuffers(Communicator& inner, const CudaStream& compute) : inner_(&inner), compute_(compute) {}

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  void barrier() override { inner_->barrier(); }

 protected:
  void do_all_reduce(void* data, std::size_t count, DType dtype, Reduction reduction) override {
    in_place(data, count, dtype, [&](auto values) { inner_->all_reduce(values, reduction); });
  }
  void do_reduce_scatter(const void* input, void* output, std::size_t count, DType dtype,
                         Reduction reduction) override {
    from_to(input, count * width(), output, count, dtype,
            [&](auto given, auto taken) { inner_->reduce_scatter(given, taken, reduction); });
  }
  void do_all_gather(const void* input, void* output, std::size_t count, DType dtype) override {
    from_to(input, count, output, count * width(), dtype,
            [&](auto given, auto taken) { inner_->all_gather(given, taken); });
  }
  void do_broadcast(void* data, std::size_t count, DType dtype, int root) override {
    in_place(data, count, dtype, [&](auto values) { inner_->broadcast(values, root); });
  }
  void do_all_to_all(const void* input, void* output, std::size_t count, DType dtype) override {
    from_to(input, count * width(), output, count * width(), dtype,
            [&](auto given, auto taken) { inner_->all_to_all(given, taken); });
  }
  Transfer do_iall_reduce(void* data, std::size_t count, DType dtype, Reduction reduction) override {
    return started(data, count, data, count, dtype,
                   [&](auto given, auto) { return inner_->iall_reduce(given, reduction); });
  }
  Transfer do_ireduce_scatter(const void* input, void* output, std::size_t count, DType dtype,
                              Reduction reduction) override {
    return started(input, count * width(), output, count, dtype,
                   [&](auto given, auto taken) { return inner_->ireduce_scatter(given, taken, reduction); });
  }
  Transfer do_ireduce(void* data, std::size_t count, DType dtype, int root, Reduction reduction) override {
    return started(data, count, data, count, dtype,
                   [&](auto given, auto) { return inner_->ireduce(given, root, reduction); });
  }
  Transfer do_isend(const void* data, std::size_t count, DType dtype, int to, int tag) override {
    auto buffer = std::make_shared<StreamBuffer>(compute_, count * size_of(dtype));
    compute_.copy(buffer->data(), data, count * size_of(dtype));
    Transfer transfer;
    with_type(dtype, [&]<typename T>() {
      transfer = inner_->isend(std::span<T>(static_cast<T*>(buffer->data()), count), to, tag);
    });
    return Transfer(std::make_unique<Wrapped>(std::move(transfer), buffer, [] {}));
  }
  Transfer do_irecv(void* data, std::size_t count, DType dtype, int from, int tag) override {
    auto buffer = std::make_shared<StreamBuffer>(compute_, count * size_of(dtype));
    Transfer transfer;
    with_type(dtype, [&]<typename T>() {
      transfer = inner_->irecv(std::span<T>(static_cast<T*>(buffer->data()), count), from, tag);
    });
    const auto take = [this, data, buffer, bytes = count * size_of(dtype)] {
      compute_.copy(data, buffer->data(), bytes);
      compute_.synchronize();
    };
    return Transfer(std::make_unique<Wrapped>(std::move(transfer), buffer, take));
  }
  std::unique_ptr<Communicator> do_split(int color, int key) override {
    return std::make_unique<DeviceBuffers>(inner_->split(color, key), compute_);
  }

 public:
  DeviceBuffers(std::unique_ptr<Communicator> inner, const CudaStream& compute)
      : owned_(std::move(inner)), inner_(owned_.get()), compute_(compute) {}

 private:
  class Wrapped final : public Transfer::State {
   public:
    Wrapped(Transfer inner, std::shared_ptr<StreamBuffer> buffer, std::function<void()> take)
        : buffer_(std::move(buffer)), inner_(std::move(inner)), take_(std::move(take)) {}
    void wait() override {
      inner_.wait();
      take_();
    }
    bool done() override { return inner_.done(); }

   private:
    std::shared_ptr<StreamBuffer> buffer_;
    Transfer inner_;  // goes before its buffer
    std::function<void()> take_;
  };

  template <typename Body>
  static void with_type(DType dtype, const Body& body) {
    switch (dtype) {
      case DType::kF32:
        return body.template operator()<float>();
      case DType::kBF16:
        return body.template operator()<BFloat16>();
      case DType::kF64:
        return body.template operator()<double>();
      case DType::kI32:
        return body.template operator()<std::int32_t>();
      case DType::kI64:
        return body.template operator()<std::int64_t>();
      default:
        return body.template operator()<std::uint8_t>();
    }
  }

  template <typename Body>
  void in_place(void* data, std::size_t count, DType dtype, const Body& body) {
    const std::size_t bytes = count * size_of(dtype);
    const StreamBuffer buffer(compute_, bytes);
    compute_.copy(buffer.data(), data, bytes);
    with_type(dtype, [&]<typename T>() { body(std::span<T>(static_cast<T*>(buffer.data()), count)); });
    compute_.copy(data, buffer.data(), bytes);
    compute_.synchronize();
  }

  template <typename Body>
  void from_to(const void* input, std::size_t input_count, void* output, std::size_t output_count, DType dtype,
               const Body& body) {
    const std::size_t width_of_one = size_of(dtype);
    const StreamBuffer given(compute_, input_count * width_of_one);
    const StreamBuffer taken(compute_, output_count * width_of_one);
    compute_.copy(given.data(), input, input_count * width_of_one);
    with_type(dtype, [&]<typename T>() {
      body(std::span<const T>(static_cast<const T*>(given.data()), input_count),
           std::span<T>(static_cast<T*>(taken.data()), output_count));
    });
    compute_.copy(output, taken.data(), output_count * width_of_one);
    compute_.synchronize();
  }

  // In place when input and output are the same.
  template <typename Body>
  Transfer started(const void* input, std::size_t input_count, void* output, std::size_t output_count, DType dtype,
                   const Body& body) {
    const std::size_t bytes = output_count * size_of(dtype);
    auto given = std::make_shared<StreamBuffer>(compute_, input_count * size_of(dtype));
    auto taken = output == input ? given : std::make_shared<StreamBuffer>(compute_, bytes);
    compute_.copy(given->data(), input, input_count * size_of(dtype));
    Transfer transfer;
    with_type(dtype, [&]<typename T>() {
      transfer = body(std::span<T>(static_cast<T*>(given->data()), input_count),
                      std::span<T>(static_cast<T*>(taken->data()), output_count));
    });
    const auto take = [this, output, given, taken, bytes] {
      compute_.copy(output, taken->data(), bytes);
      compute_.synchronize();
    };
    return Transfer(std::make_unique<Wrapped>(std::move(transfer), taken, take));
  }

  std::size_t width() const { return static_cast<std::size_t>(size()); }

  std::unique_ptr<Communicator> owned_;
  Communicator* inner_;
  const CudaStream& compute_;
};

}  // namespace kvloom::test
