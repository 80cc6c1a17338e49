// Stages over a communicator (core/stage_links.h): every message carries its key, and a receiver takes nothing but what
// it waits for.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <vector>

#include "core/stage_links.h"
#include "parallel/communicator.h"
#include "parallel/patience.h"
#include "parallel/sent_messages.h"

namespace kvloom {

class StageRanks final : public StageLinks {
 public:
  // `ranks`: one of each stage, in their order, of the same tensor part. Both outlive this. Throws InputError when
  // there are not as many as `boundaries` have stages.
  StageRanks(Communicator& ranks, std::vector<int> boundaries, Allocator& allocator, Patience patience = {});

  std::span<const int> boundaries() const override { return boundaries_; }
  int stage() const override { return ranks_.rank(); }
  void send(const StageKey& key, std::vector<Tensor> parts) override;
  std::vector<Tensor> receive(const StageKey& key, std::span<const StagePart> parts) override;
  void finish() override;

  // That this stage sent so far, keys left aside.
  std::uint64_t sent_bytes(StageMessage message) const;

  // Keys and parts of a kind have tags of their own: of one sender and kind messages come in order, whatever the order
  // in which kinds are waited for.
  static int key_tag(StageMessage message) { return 2 * static_cast<int>(message); }
  static int part_tag(StageMessage message) { return key_tag(message) + 1; }

 private:
  // Step, layer, sender, receiver, and the rows of each part.
  using Header = std::array<std::int64_t, 4 + kMostStageParts>;
  struct Message {
    Header header;
    std::vector<Tensor> parts;
  };
  void wait_for(const StageKey& key, Transfer transfer) const;
  // Of several stages that wait for one another, the one whose message was due gives up first.
  std::chrono::milliseconds limit_of(const StageKey& key) const;

  Communicator& ranks_;
  std::vector<int> boundaries_;
  Allocator& allocator_;
  Patience patience_;
  SentMessages<Message> sent_;
};

}  // namespace kvloom
