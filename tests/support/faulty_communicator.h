// A pipeline rank's communicator that loses or swaps the messages of chosen edges on their way out, as a faulty sender
// would.
#pragma once

#include <cstring>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "parallel/edge_messages.h"

namespace kvloom::test {

struct MessageFault {
  MessageKey message;
  std::optional<MessageKey> swapped_with = {};  // one that this rank sends later to the same rank; none: lost
};

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

// Everything but messages goes to `inner` as it is.
class FaultyCommunicator final : public Communicator {
 public:
  // `inner` outlives this.
  FaultyCommunicator(Communicator& inner, const MessageFault& fault) : inner_(inner), fault_(fault) {}

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

  // A message is its header and, after it, the tensors (edge_messages.h).
  Transfer do_isend(const void* data, std::size_t count, DType dtype, int to, int tag) override {
    if (tag == static_cast<int>(EdgeTag::kStuck)) return send_now(data, count, dtype, to, tag);
    if (tag == static_cast<int>(EdgeTag::kKey)) begin_message(static_cast<const std::int64_t*>(data));
    if (fate_ == Fate::kLost) return {};
    if (fate_ == Fate::kHeld) {
      const auto* bytes = static_cast<const std::byte*>(data);
      held_.push_back(
          {std::make_unique<std::vector<std::byte>>(bytes, bytes + count * size_of(dtype)), count, dtype, to, tag});
      return {};
    }
    Transfer transfer = send_now(data, count, dtype, to, tag);
    const std::size_t parts =
        tag == static_cast<int>(EdgeTag::kKeyValue) || tag == static_cast<int>(EdgeTag::kKeyValueGradient) ? 3 : 2;
    if (fate_ == Fate::kOvertakes && ++sent_ == parts) release();
    return transfer;
  }
  Transfer do_irecv(void* data, std::size_t count, DType dtype, int from, int tag) override {
    return typed(dtype, [&]<typename T>(T) { return inner_.irecv(span<T>(data, count), from, tag); });
  }

 private:
  enum class Fate : std::uint8_t { kSent, kLost, kHeld, kOvertakes };
  struct Part {
    std::unique_ptr<std::vector<std::byte>> bytes;
    std::size_t count;
    DType dtype;
    int to;
    int tag;
  };

  template <typename T>
  static std::span<T> span(auto* data, std::size_t count) {
    return {static_cast<T*>(data), count};
  }
  std::size_t ranks() const { return static_cast<std::size_t>(inner_.size()); }

  Transfer send_now(const void* data, std::size_t count, DType dtype, int to, int tag) {
    return typed(dtype, [&]<typename T>(T) { return inner_.isend(span<const T>(data, count), to, tag); });
  }

  void begin_message(const std::int64_t* header) {
    const MessageKey key{static_cast<int>(header[0]), static_cast<int>(header[1]), header[2] != 0};
    fate_ = Fate::kSent;
    if (key == fault_.message) fate_ = fault_.swapped_with.has_value() ? Fate::kHeld : Fate::kLost;
    if (key == fault_.swapped_with) fate_ = Fate::kOvertakes;
  }

  void release() {
    for (const Part& part : held_) {
      late_.push_back(send_now(part.bytes->data(), part.count, part.dtype, part.to, part.tag));
    }
    fate_ = Fate::kSent;
  }

  Communicator& inner_;
  MessageFault fault_;
  Fate fate_ = Fate::kSent;
  std::size_t sent_ = 0;
  std::vector<Part> held_;
  std::vector<Transfer> late_;
};

}  // namespace kvloom::test
