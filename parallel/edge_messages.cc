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

}  // namespace

EdgeMessages::EdgeMessages(const ChunkChain& chain, Communicator& ranks) : chain_(chain), ranks_(ranks) {}

void EdgeMessages::send(const MessageKey& key, std::vector<Tensor> tensors) {
  let_go_of_sent();
  const Edge& edge = chain_.edges.at(static_cast<std::size_t>(key.edge));
  const int to = key.gradient ? edge.from_rank : edge.to_rank;
  const int tag = static_cast<int>(tag_of(edge.kind, key.gradient));
  // In its place before anything is sent: a transfer keeps the address.
  Message& message = sent_.emplace_back(Message{header_of(key), std::move(tensors), {}});
  message.transfers.push_back(ranks_.isend(std::span<std::int64_t>(message.header), to, kKeyTag));
  for (const Tensor& tensor : message.tensors) message.transfers.push_back(isend_tensor(ranks_, tensor, to, tag));
}

void EdgeMessages::post(const MessageKey& key, std::vector<Tensor> tensors) {
  const Edge& edge = chain_.edges.at(static_cast<std::size_t>(key.edge));
  const int from = key.gradient ? edge.to_rank : edge.from_rank;
  const int tag = static_cast<int>(tag_of(edge.kind, key.gradient));
  const auto [place, is_new] = posted_.try_emplace(key);
  if (!is_new) fail("pipeline: posted twice: {}", describe(chain_, key));
  Message& message = place->second;
  message.tensors = std::move(tensors);
  message.transfers.push_back(ranks_.irecv(std::span<std::int64_t>(message.header), from, kKeyTag));
  for (const Tensor& tensor : message.tensors) message.transfers.push_back(irecv_tensor(ranks_, tensor, from, tag));
}

std::vector<Tensor> EdgeMessages::take(const MessageKey& key) {
  const auto found = posted_.find(key);
  if (found == posted_.end()) fail("pipeline: needed before it was posted: {}", describe(chain_, key));
  Message& message = found->second;
  try {
    message.transfers.front().wait();
  } catch (const Error& error) {
    fail("pipeline: waiting for the {}: {}", describe(chain_, key), error.what());
  }
  const MessageKey came = key_of(message.header);
  if (came != key) {
    fail("pipeline: instead of the {} came the {}", describe(chain_, key), describe(chain_, came));
  }
  for (Transfer& transfer : message.transfers) transfer.wait();
  std::vector<Tensor> tensors = std::move(message.tensors);
  posted_.erase(found);
  return tensors;
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
