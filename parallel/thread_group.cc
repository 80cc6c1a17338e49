#include "parallel/thread_group.h"

#include <cstring>
#include <utility>

#include "kernels/error.h"

namespace kvloom {
namespace {

std::string message_of(const std::exception_ptr& exception) {
  try {
    std::rethrow_exception(exception);
  } catch (const std::exception& e) {
    return e.what();
  } catch (...) {
    return "an exception of unknown type";
  }
}

}  // namespace

void ThreadWorld::rank_failed(int rank, std::exception_ptr exception) {
  const std::lock_guard lock(mutex);
  if (first_exception == nullptr) {
    failure = fmt::format("rank {} failed: {}", rank, message_of(exception));
    first_exception = std::move(exception);
  }
  changed.notify_all();
}

void ThreadWorld::rank_ended(int rank) {
  const std::lock_guard lock(mutex);
  ended[static_cast<std::size_t>(rank)] = true;
  changed.notify_all();
}

bool Contribution::agrees_with(const Contribution& other) const {
  return std::strcmp(operation, other.operation) == 0 && count == other.count && dtype == other.dtype &&
         detail == other.detail;
}

ThreadGroup::ThreadGroup(std::shared_ptr<ThreadWorld> world, std::vector<int> members)
    : world_(std::move(world)), members_(std::move(members)), contributions_(members_.size()) {}

bool ThreadGroup::arrive() {
  if (++arrived_ < size()) return false;
  arrived_ = 0;
  ++generation_;
  world_->changed.notify_all();
  return true;
}

int ThreadGroup::ended_member() const {
  for (int rank = 0; rank < size(); ++rank) {
    const int member = members_[static_cast<std::size_t>(rank)];
    if (world_->ended[static_cast<std::size_t>(member)]) return rank;
  }
  return -1;
}

const std::vector<Contribution>& ThreadGroup::enter(int rank, const Contribution& contribution) {
  std::unique_lock lock(world_->mutex);
  contributions_[static_cast<std::size_t>(rank)] = contribution;
  const std::uint64_t before = generation_;
  if (!world_->failure.empty()) fail("{} on rank {}: {}", contribution.operation, rank, world_->failure);
  const bool last = arrive();
  while (!last && generation_ == before) {
    const int gone = ended_member();
    if (!world_->failure.empty() || gone >= 0) {
      --arrived_;
      if (!world_->failure.empty()) fail("{} on rank {}: {}", contribution.operation, rank, world_->failure);
      fail("{} on rank {}: rank {} has ended and does not take part", contribution.operation, rank, gone);
    }
    world_->changed.wait(lock);
  }
  // Every rank compares the same list, so that all throw or none does.
  for (int other = 1; other < size(); ++other) {
    const Contribution& first = contributions_.front();
    const Contribution& that = contributions_[static_cast<std::size_t>(other)];
    if (first.agrees_with(that)) continue;
    fail("{} on rank {}: rank 0 is in {} of {} {} ({}), rank {} in {} of {} {} ({})", contribution.operation, rank,
         first.operation, first.count, name_of(first.dtype), first.detail, other, that.operation, that.count,
         name_of(that.dtype), that.detail);
  }
  return contributions_;
}

// Waits even when a rank elsewhere has failed: members of this group may still be reading this rank's buffers, and they
// come here without waiting for anything.
void ThreadGroup::leave() {
  std::unique_lock lock(world_->mutex);
  const std::uint64_t before = generation_;
  if (arrive()) return;
  world_->changed.wait(lock, [&] { return generation_ != before; });
}

void ThreadGroup::post(int from, int to, int tag, Message message) {
  const std::lock_guard lock(world_->mutex);
  Mailbox& box = mailboxes_[{from, to, tag}];
  box.waiting.emplace(box.sent++, std::move(message));
  world_->changed.notify_all();
}

bool ThreadGroup::settled(int from, int to, int tag, std::uint64_t place) const {
  const std::lock_guard lock(world_->mutex);
  const auto sender = static_cast<std::size_t>(members_[static_cast<std::size_t>(from)]);
  const auto box = mailboxes_.find({from, to, tag});
  const bool arrived = box != mailboxes_.end() && box->second.waiting.contains(place);
  return arrived || !world_->failure.empty() || world_->ended[sender];
}

std::uint64_t ThreadGroup::next_receive(int from, int to, int tag) {
  const std::lock_guard lock(world_->mutex);
  return mailboxes_[{from, to, tag}].asked++;
}

ThreadGroup::Message ThreadGroup::take(int from, int to, int tag, std::uint64_t place) {
  std::unique_lock lock(world_->mutex);
  Mailbox& box = mailboxes_[{from, to, tag}];
  const auto sender = static_cast<std::size_t>(members_[static_cast<std::size_t>(from)]);
  while (!box.waiting.contains(place)) {
    if (!world_->failure.empty()) fail("irecv on rank {} from rank {}, tag {}: {}", to, from, tag, world_->failure);
    if (world_->ended[sender]) {
      fail("irecv on rank {} from rank {}, tag {}: the sender has ended without sending", to, from, tag);
    }
    world_->changed.wait(lock);
  }
  Message message = std::move(box.waiting.at(place));
  box.waiting.erase(place);
  return message;
}

}  // namespace kvloom
