// A pipeline rank's communicator that loses or swaps the messages of chosen edges on their way out, as a faulty sender
// would.
#pragma once

#include <cstring>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "parallel/edge_messages.h"
#include "tests/support/forwarding_communicator.h"

namespace kvloom::test {

struct MessageFault {
  MessageKey message;
  std::optional<MessageKey> swapped_with = {};  // one that this rank sends later to the same rank; none: lost
  int tensors_of_other = 0;                     // that this one has
};

// Everything but messages goes to `inner` as it is.
class FaultyCommunicator final : public ForwardingCommunicator {
 public:
  // `inner` outlives this.
  FaultyCommunicator(Communicator& inner, const MessageFault& fault) : ForwardingCommunicator(inner), fault_(fault) {}

 protected:
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
    if (fate_ == Fate::kOvertakes && ++sent_ == 1 + fault_.tensors_of_other) release();
    return transfer;
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

  Transfer send_now(const void* data, std::size_t count, DType dtype, int to, int tag) {
    return ForwardingCommunicator::do_isend(data, count, dtype, to, tag);
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

  MessageFault fault_;
  Fate fate_ = Fate::kSent;
  int sent_ = 0;
  std::vector<Part> held_;
  std::vector<Transfer> late_;
};

}  // namespace kvloom::test
