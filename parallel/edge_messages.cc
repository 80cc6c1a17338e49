#include "parallel/edge_messages.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "parallel/tensor_transfer.h"

namespace kvloom {

EdgeTag tag_of(EdgeKind kind, bool gradient) {
  if (kind == EdgeKind::kHidden) return gradient ? EdgeTag::kHiddenGradient : EdgeTag::kHidden;
  return gradient ? EdgeTag::kKeyValueGradient : EdgeTag::kKeyValue;
}

std::string describe(const ChunkChain& chain, const MessageKey& key) {
  if (key.edge < 0 || static_cast<std::size_t>(key.edge) >= chain.edges.size()) {
    return fmt::format("edge {}, which there is not", key.edge);
  }
  return fmt::format("{}{}, micro-batch {}", key.gradient ? "gradient back along the edge of the " : "",
                     describe(chain.edges[static_cast<std::size_t>(key.edge)]), key.micro_batch);
}

namespace {

std::array<std::int64_t, 3> header_of(const MessageKey& key) {
  return {key.micro_batch, key.edge, key.gradient ? 1 : 0};
}

MessageKey key_of(const std::array<std::int64_t, 3>& header) {
  return {static_cast<int>(header[0]), static_cast<int>(header[1]), header[2] != 0};
}

constexpr int kKeyTag = static_cast<int>(EdgeTag::kKey);
constexpr int kStuckTag = static_cast<int>(EdgeTag::kStuck);

}  // namespace

EdgeMessages::EdgeMessages(const ChunkChain& chain, const Schedule& schedule, Communicator& ranks, Patience patience)
    : chain_(chain), schedule_(schedule), ranks_(ranks), patience_(std::move(patience)) {}

int EdgeMessages::sender_of(const MessageKey& key) const {
  const Edge& edge = chain_.edges.at(static_cast<std::size_t>(key.edge));
  return key.gradient ? edge.to_rank : edge.from_rank;
}

void EdgeMessages::send(const MessageKey& key, std::vector<Tensor> tensors) {
  let_go_of_sent();
  const Edge& edge = chain_.edges.at(static_cast<std::size_t>(key.edge));
  const int to = key.gradient ? edge.from_rank : edge.to_rank;
  const int tag = static_cast<int>(tag_of(edge.kind, key.gradient));
  // In its place before anything is sent: a transfer keeps the address.
  Message& message = sent_.emplace_back(Message{header_of(key), std::move(tensors), {}, false});
  message.transfers.push_back(ranks_.isend(std::span<std::int64_t>(message.header), to, kKeyTag));
  for (const Tensor& tensor : message.tensors) message.transfers.push_back(isend_tensor(ranks_, tensor, to, tag));
}

void EdgeMessages::post(const MessageKey& key, std::vector<Tensor> tensors) {
  const Edge& edge = chain_.edges.at(static_cast<std::size_t>(key.edge));
  const int from = sender_of(key);
  const int tag = static_cast<int>(tag_of(edge.kind, key.gradient));
  const auto [place, is_new] = posted_.try_emplace(key);
  if (!is_new) fail("pipeline: posted twice: {}", describe(chain_, key));
  Message& message = place->second;
  expected_[from].push_back(key);
  message.tensors = std::move(tensors);
  message.transfers.push_back(ranks_.irecv(std::span<std::int64_t>(message.header), from, kKeyTag));
  for (const Tensor& tensor : message.tensors) message.transfers.push_back(irecv_tensor(ranks_, tensor, from, tag));
}

std::vector<Tensor> EdgeMessages::take(const MessageKey& key) {
  const auto found = posted_.find(key);
  if (found == posted_.end()) fail("pipeline: needed before it was posted: {}", describe(chain_, key));
  Message& message = found->second;
  std::deque<MessageKey>& expected = expected_[sender_of(key)];
  while (!message.is_verified) {
    verify(expected.front(), key);
    expected.pop_front();
  }
  for (Transfer& transfer : message.transfers) wait_for(key, transfer, key);
  std::vector<Tensor> tensors = std::move(message.tensors);
  posted_.erase(found);
  return tensors;
}

void EdgeMessages::verify(const MessageKey& key, const MessageKey& needed) {
  Message& message = posted_.at(key);
  wait_for(key, message.transfers.front(), needed);
  const MessageKey came = key_of(message.header);
  if (came != key) {
    fail("pipeline: instead of the {} came the {}", describe(chain_, key), describe(chain_, came));
  }
  message.is_verified = true;
}

void EdgeMessages::wait_for(const MessageKey& key, Transfer& transfer, const MessageKey& needed) {
  bool has_come = false;
  try {
    has_come = comes_in_time(key, transfer);
    if (has_come) transfer.wait();
  } catch (const Error& error) {
    fail("pipeline: waiting for the {}: {}", describe(chain_, key), error.what());
  }
  if (!has_come) give_up(key, needed);
}

bool EdgeMessages::comes_in_time(const MessageKey& key, Transfer& transfer) {
  const auto warn_after = patience_.warn_after;
  if (has_warned_ || !patience_.warn || warn_after >= patience_.limit) return is_done_within(transfer, patience_.limit);
  if (is_done_within(transfer, warn_after)) return true;
  has_warned_ = true;
  patience_.warn(fmt::format("pipeline: waiting for the {} for {} s now, for rank {} to send it; fails at {} s",
                             describe(chain_, key), in_seconds(warn_after), sender_of(key),
                             in_seconds(patience_.limit)));
  return is_done_within(transfer, patience_.limit - warn_after);
}

// One message that is missing soon stops every rank. Each tells the others what it needs to go on. A rank whose sender
// is stopped itself, before it sends, is not where the fault is, and leaves the word to the others.
void EdgeMessages::give_up(const MessageKey& key, const MessageKey& needed) {
  const int sender = sender_of(key);
  Header own = header_of(needed);
  Header senders{};
  std::vector<Transfer> notices;
  for (int rank = 0; rank < ranks_.size(); ++rank) {
    if (rank != ranks_.rank()) notices.push_back(ranks_.isend(std::span<std::int64_t>(own), rank, kStuckTag));
  }
  Transfer notice = ranks_.irecv(std::span<std::int64_t>(senders), sender, kStuckTag);
  if (is_done_within(notice, patience_.limit)) {
    notice.wait();
    if (!is_sent_before_use(key, key_of(senders), sender)) {
      // Ends early where the communicator tells of a rank that has failed.
      Transfer end = ranks_.irecv(std::span<std::int64_t>(senders), sender, kStuckTag);
      is_done_within(end, 2 * patience_.limit);
    }
  }
  fail("pipeline: the {} has not come in {} s", describe(chain_, key), in_seconds(patience_.limit));
}

// Whether `rank` sends the one before the compute that first uses the other.
bool EdgeMessages::is_sent_before_use(const MessageKey& sent, const MessageKey& used, int rank) const {
  const Edge& edge = chain_.edges.at(static_cast<std::size_t>(used.edge));
  const Instruction send{Action::kSend, sent.micro_batch, sent.edge, sent.gradient};
  const Instruction use = used.gradient ? Instruction{Action::kBackward, used.micro_batch, edge.from_chunk}
                                        : Instruction{Action::kForward, used.micro_batch, edge.readers.front()};
  const std::vector<Instruction>& list = schedule_.ranks.at(static_cast<std::size_t>(rank));
  return std::ranges::find(list, send) < std::ranges::find(list, use);
}

void EdgeMessages::let_go_of_sent() {
  while (!sent_.empty() && std::ranges::all_of(sent_.front().transfers, &Transfer::done)) {
    wait_all(sent_.front().transfers);
    sent_.pop_front();
  }
}

void EdgeMessages::finish() {
  for (Message& message : sent_) wait_all(message.transfers);
  sent_.clear();
  if (!posted_.empty()) fail("pipeline: never used: {}", describe(chain_, posted_.begin()->first));
}

}  // namespace kvloom
