// Ranks whose communicator knows the host's memory only, seen as one that takes a GPU's too: through copies on the
// host, in the order of one stream. So ranks that are threads can compute on a GPU, or on what stands for one.
#pragma once

#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "core/cuda_allocator.h"
#include "core/cuda_stream.h"
#include "parallel/device_ranks.h"
#include "tests/support/forwarding_communicator.h"

namespace kvloom::test {

class HostStaging final : public Communicator {
 public:
  // Both outlive this.
  HostStaging(Communicator& inner, const CudaStream& compute) : inner_(&inner), compute_(compute) {}
  HostStaging(std::unique_ptr<Communicator> inner, const CudaStream& compute)
      : owned_(std::move(inner)), inner_(owned_.get()), compute_(compute) {}

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  void barrier() override { inner_->barrier(); }

 protected:
  void do_all_reduce(void* data, std::size_t count, DType dtype, Reduction reduction) override {
    do_iall_reduce(data, count, dtype, reduction).wait();
  }
  void do_reduce_scatter(const void* input, void* output, std::size_t count, DType dtype,
                         Reduction reduction) override {
    do_ireduce_scatter(input, output, count, dtype, reduction).wait();
  }
  Transfer do_iall_reduce(void* data, std::size_t count, DType dtype, Reduction reduction) override {
    const auto values = loaded(data, count * size_of(dtype));
    return stored(values,
                  typed(dtype, [&]<typename T>(T) { return inner_->iall_reduce(values->span<T>(), reduction); }));
  }
  Transfer do_ireduce_scatter(const void* input, void* output, std::size_t count, DType dtype,
                              Reduction reduction) override {
    const auto all = loaded(input, count * ranks() * size_of(dtype));
    const auto part = buffer(output, count * size_of(dtype));
    return stored(part,
                  typed(dtype,
                        [&]<typename T>(T) {
                          return inner_->ireduce_scatter(std::span<const T>(all->span<T>()), part->span<T>(),
                                                         reduction);
                        }),
                  all);
  }
  Transfer do_ireduce(void* data, std::size_t count, DType dtype, int root, Reduction reduction) override {
    const auto values = loaded(data, count * size_of(dtype));
    return stored(values,
                  typed(dtype, [&]<typename T>(T) { return inner_->ireduce(values->span<T>(), root, reduction); }));
  }
  void do_all_gather(const void* input, void* output, std::size_t count, DType dtype) override {
    const auto part = loaded(input, count * size_of(dtype));
    const auto all = buffer(output, count * ranks() * size_of(dtype));
    typed(dtype, [&]<typename T>(T) { inner_->all_gather(std::span<const T>(part->span<T>()), all->span<T>()); });
    all->store();
  }
  void do_broadcast(void* data, std::size_t count, DType dtype, int root) override {
    const auto values = loaded(data, count * size_of(dtype));
    typed(dtype, [&]<typename T>(T) { inner_->broadcast(values->span<T>(), root); });
    values->store();
  }
  void do_all_to_all(const void* input, void* output, std::size_t count, DType dtype) override {
    const auto given = loaded(input, count * ranks() * size_of(dtype));
    const auto taken = buffer(output, count * ranks() * size_of(dtype));
    typed(dtype, [&]<typename T>(T) { inner_->all_to_all(std::span<const T>(given->span<T>()), taken->span<T>()); });
    taken->store();
  }
  std::unique_ptr<Communicator> do_split(int color, int key) override {
    return std::make_unique<HostStaging>(inner_->split(color, key), compute_);
  }
  Transfer do_isend(const void* data, std::size_t count, DType dtype, int to, int tag) override {
    const auto values = loaded(data, count * size_of(dtype));
    return stored(nullptr, typed(dtype, [&]<typename T>(T) { return inner_->isend(values->span<T>(), to, tag); }),
                  values);
  }
  Transfer do_irecv(void* data, std::size_t count, DType dtype, int from, int tag) override {
    const auto values = buffer(data, count * size_of(dtype));
    return stored(values, typed(dtype, [&]<typename T>(T) { return inner_->irecv(values->span<T>(), from, tag); }));
  }

 private:
  // A caller's buffer as the host sees it: itself, or a copy of what the GPU has.
  class Buffer {
   public:
    Buffer(const CudaStream& stream, const void* data, std::size_t bytes)
        : stream_(stream), data_(const_cast<void*>(data)), bytes_(bytes) {
      if (bytes > 0 && is_device_memory(data)) copy_.resize(bytes);
    }
    void load() { copy(copy_.data(), data_); }
    void store() { copy(data_, copy_.data()); }
    template <typename T>
    std::span<T> span() {
      return {static_cast<T*>(copy_.empty() ? data_ : copy_.data()), bytes_ / sizeof(T)};
    }

   private:
    void copy(void* to, const void* from) {
      if (copy_.empty()) return;
      stream_.copy(to, from, bytes_);
      stream_.synchronize();
    }

    const CudaStream& stream_;
    void* data_;
    std::size_t bytes_;
    std::vector<std::byte> copy_;
  };

  class Staged final : public Transfer::State {
   public:
    Staged(std::shared_ptr<Buffer> output, std::shared_ptr<Buffer> input, Transfer inner)
        : output_(std::move(output)), input_(std::move(input)), inner_(std::move(inner)) {}
    void wait() override {
      inner_.wait();
      if (output_ != nullptr) output_->store();
    }
    bool done() override { return inner_.done(); }

   private:
    std::shared_ptr<Buffer> output_;
    std::shared_ptr<Buffer> input_;
    Transfer inner_;  // goes before its buffers
  };

  std::shared_ptr<Buffer> buffer(const void* data, std::size_t bytes) const {
    return std::make_shared<Buffer>(compute_, data, bytes);
  }
  std::shared_ptr<Buffer> loaded(const void* data, std::size_t bytes) const {
    auto made = buffer(data, bytes);
    made->load();
    return made;
  }
  static Transfer stored(std::shared_ptr<Buffer> output, Transfer inner, std::shared_ptr<Buffer> input = nullptr) {
    return Transfer(std::make_unique<Staged>(std::move(output), std::move(input), std::move(inner)));
  }
  std::size_t ranks() const { return static_cast<std::size_t>(size()); }

  std::unique_ptr<Communicator> owned_;
  Communicator* inner_;
  const CudaStream& compute_;
};

inline ConnectRanks connect_by_host_staging() {
  return [](Communicator& world, Allocator& allocator) {
    return std::make_unique<HostStaging>(world, dynamic_cast<CachingCudaAllocator&>(allocator).stream());
  };
}

}  // namespace kvloom::test
