#include "infer/ranks/stage_ranks.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <utility>

#include "kernels/error.h"
#include "parallel/tensor_transfer.h"

namespace kvloom {
StageRanks::StageRanks(Communicator& ranks, std::vector<int> boundaries, Allocator& allocator, Patience patience)
    : ranks_(ranks), boundaries_(std::move(boundaries)), allocator_(allocator), patience_(std::move(patience)) {
  if (stages() != ranks.size()) {
    reject_input("stage boundaries {}: {} stages; right are {}", fmt::join(boundaries_, ","), stages(), ranks.size());
  }
}

void StageRanks::send(const StageKey& key, std::vector<Tensor> parts) {
  Message message{{key.step, key.layer, key.from, key.to}, std::move(parts)};
  for (std::size_t part = 0; part < message.parts.size(); ++part) {
    message.header[4 + part] = message.parts[part].size(0);
  }
  sent_.add(std::move(message), [&](Message& sent, std::vector<Transfer>& transfers) {
    transfers.push_back(ranks_.isend(std::span<std::int64_t>(sent.header), key.to, key_tag(key.message)));
    for (const Tensor& part : sent.parts) {
      if (part.count() > 0) transfers.push_back(isend_tensor(ranks_, part, key.to, part_tag(key.message)));
    }
  });
}

std::vector<Tensor> StageRanks::receive(const StageKey& key, std::span<const StagePart> parts) {
  Header header{};
  wait_for(key, ranks_.irecv(std::span<std::int64_t>(header), key.from, key_tag(key.message)));
  const StageKey came{.message = key.message,
                      .step = header[0],
                      .layer = static_cast<int>(header[1]),
                      .from = static_cast<int>(header[2]),
                      .to = static_cast<int>(header[3])};
  if (came != key) fail("stages: instead of the {} came the {}", describe(key), describe(came));
  std::vector<Tensor> tensors;
  for (std::size_t part = 0; part < parts.size(); ++part) {
    tensors.push_back(Tensor::empty(allocator_, {header[4 + part], parts[part].columns}, parts[part].dtype));
    if (tensors.back().count() > 0) {
      wait_for(key, irecv_tensor(ranks_, tensors.back(), key.from, part_tag(key.message)));
    }
  }
  return tensors;
}

// The sender of a message may itself wait for another stage's. So that the stage whose message is missing is named, and
// not one that waits for it, a message has more time the more others come before it:
//   kUpward                        none: its step has ended
//   kPieces, kHidden, kDownward    rows of every stage below the receiver
//   kSegmentInput                  rows of every stage below the sender
//   kGuess                         the input of its segment
//   kOutcome, kLogits              rows of all stages
std::chrono::milliseconds StageRanks::limit_of(const StageKey& key) const {
  constexpr double kMore = 0.2;
  double depth = 0;
  switch (key.message) {
    case StageMessage::kUpward:
      break;
    case StageMessage::kSegmentInput:
      depth = key.from + 0.3;
      break;
    case StageMessage::kGuess:
      depth = key.to + 0.6;
      break;
    case StageMessage::kPieces:
    case StageMessage::kHidden:
    case StageMessage::kDownward:
      depth = key.to;
      break;
    case StageMessage::kOutcome:
    case StageMessage::kLogits:
      depth = stages();
      break;
  }
  // The lowest stage, which alone gets these, does not ask whether another rank has failed before (parallel/world.h): a
  // second more lets that one be heard.
  const bool is_answer = key.message == StageMessage::kOutcome || key.message == StageMessage::kLogits;
  return std::chrono::duration_cast<std::chrono::milliseconds>(patience_.limit * (1 + kMore * depth)) +
         std::chrono::seconds(is_answer ? 1 : 0);
}

void StageRanks::wait_for(const StageKey& key, Transfer transfer) const {
  const std::chrono::milliseconds limit = limit_of(key);
  bool has_come = false;
  try {
    const auto first = patience_.warn ? std::min(patience_.warn_after, limit) : limit;
    has_come = is_done_within(transfer, first);
    if (!has_come && first < limit) {
      patience_.warn(fmt::format("stages: waiting for the {} for {} s now; fails at {} s", describe(key),
                                 in_seconds(first), in_seconds(limit)));
      has_come = is_done_within(transfer, limit - first);
    }
    if (has_come) transfer.wait();
  } catch (const Error& error) {
    fail("stages: waiting for the {}: {}", describe(key), error.what());
  }
  if (!has_come) fail("stages: the {} has not come in {} s", describe(key), in_seconds(limit));
}

void StageRanks::finish() { sent_.finish(); }

std::uint64_t StageRanks::sent_bytes(StageMessage message) const { return ranks_.sent_bytes(part_tag(message)); }

}  // namespace kvloom
