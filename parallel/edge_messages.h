// Messages along the edges of a chunk chain. Each carries its key, and a receiver takes nothing but what it waits for.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <vector>

#include "core/kv_store.h"
#include "core/tensor.h"
#include "parallel/chunk_chain.h"
#include "parallel/communicator.h"
#include "parallel/patience.h"
#include "parallel/schedule.h"

namespace kvloom {

// Which message: along an edge or, with `gradient`, back along it, of one micro-batch.
struct MessageKey {
  int micro_batch;
  int edge;
  bool gradient;

  friend auto operator<=>(const MessageKey&, const MessageKey&) = default;
};

// Tags, by which Communicator::sent_bytes counts.
enum class EdgeTag : std::uint8_t { kKey = 1, kHidden, kHiddenGradient, kKeyValue, kKeyValueGradient, kStuck };
EdgeTag tag_of(EdgeKind kind, bool gradient);

// "K/V of layer 10 in pass 3, from rank 2 to rank 0, micro-batch 5"; with gradient: "gradient of ...".
std::string describe(const ChunkChain& chain, const MessageKey& key);

class EdgeMessages {
 public:
  // All but `patience` outlive this; the schedule is what the ranks run.
  EdgeMessages(const ChunkChain& chain, const Schedule& schedule, Communicator& ranks, Patience patience);

  // Starts to send; the tensors stay alive until they have left. One tensor for hidden states, otherwise what the edge
  // carries of K and V.
  void send(const MessageKey& key, std::vector<Tensor> tensors);
  // Posts the receive into the tensors. Of each pair of ranks in the order of the sends.
  void post(const MessageKey& key, std::vector<Tensor> tensors);
  // The tensors of a posted receive, once they are there. Throws Error naming the edge when it was not posted, when
  // another message came in its place, or when it does not come: of ranks that wait for one another, the one whose
  // message was due speaks first.
  std::vector<Tensor> take(const MessageKey& key);
  // Waits until everything sent has left. Throws Error naming a message that was posted and never taken.
  void finish();

 private:
  using Header = std::array<std::int64_t, 3>;
  struct Message {
    Header header;
    std::vector<Tensor> tensors;
    std::vector<Transfer> transfers;  // the header's first
    bool is_verified;                 // received: the header has come and is right
  };
  void let_go_of_sent();
  // Of a message that must come before `needed`, without which the rank does not go on.
  void verify(const MessageKey& key, const MessageKey& needed);
  void wait_for(const MessageKey& key, Transfer& transfer, const MessageKey& needed);
  bool comes_in_time(const MessageKey& key, Transfer& transfer);
  [[noreturn]] void give_up(const MessageKey& key, const MessageKey& needed);
  int sender_of(const MessageKey& key) const;
  bool is_sent_before_use(const MessageKey& sent, const MessageKey& used, int rank) const;

  const ChunkChain& chain_;
  const Schedule& schedule_;
  Communicator& ranks_;
  Patience patience_;
  bool has_warned_ = false;
  std::map<MessageKey, Message> posted_;
  // Posted and not verified, in order, by sender: they come in that order, so the first that is wrong is where the
  // fault is, whichever of them is needed first.
  std::map<int, std::deque<MessageKey>> expected_;
  std::deque<Message> sent_;
};

}  // namespace kvloom
