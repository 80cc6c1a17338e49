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
    : world_(std::move(world)), members_(std::move(members)), started_(members_.size(), 0) {}

std::uint64_t ThreadGroup::start(int rank, const Contribution& contribution, PieceWork work) {
  const std::lock_guard lock(world_->mutex);
  if (!world_->failure.empty()) fail("{} on rank {}: {}", contribution.operation, rank, world_->failure);
  const auto own = static_cast<std::size_t>(rank);
  const std::uint64_t place = started_[own]++;
  Meeting& meeting = meetings_.try_emplace(place, members_.size()).first->second;
  meeting.contributions[own] = contribution;
  meeting.here[own] = true;
  if (meeting.arrived == 0) meeting.work = std::move(work);
  if (++meeting.arrived < size()) return place;
  if (meeting.failure.empty()) meeting.failure = disagreement(meeting);
  world_->changed.notify_all();
  return place;
}

void ThreadGroup::finish(int rank, std::uint64_t place) {
  std::unique_lock lock(world_->mutex);
  Meeting& meeting = meetings_.at(place);
  while (meeting.arrived < size() && meeting.failure.empty()) {
    look_for_absent(meeting);
    if (meeting.failure.empty()) world_->changed.wait(lock);
  }
  while (meeting.failure.empty() && meeting.next_piece < meeting.work.pieces) {
    const std::size_t piece = meeting.next_piece++;
    ++meeting.in_progress;
    lock.unlock();
    meeting.work.run(meeting.contributions, piece);
    lock.lock();
    const bool none_left = meeting.next_piece == meeting.work.pieces || !meeting.failure.empty();
    if (--meeting.in_progress == 0 && none_left) world_->changed.notify_all();
  }
  world_->changed.wait(lock, [&] { return meeting.in_progress == 0; });
  const std::string failure = meeting.failure;
  const char* operation = meeting.contributions[static_cast<std::size_t>(rank)].operation;
  leave(place);
  if (!failure.empty()) fail("{} on rank {}: {}", operation, rank, failure);
}

bool ThreadGroup::ready(std::uint64_t place) {
  const std::lock_guard lock(world_->mutex);
  Meeting& meeting = meetings_.at(place);
  if (meeting.arrived < size()) look_for_absent(meeting);
  return meeting.arrived == size() || !meeting.failure.empty();
}

void ThreadGroup::give_up(int rank, std::uint64_t place) noexcept {
  std::unique_lock lock(world_->mutex);
  Meeting& meeting = meetings_.at(place);
  const bool is_done = meeting.arrived == size() && meeting.next_piece == meeting.work.pieces;
  if (!is_done && meeting.failure.empty()) meeting.failure = fmt::format("rank {} has given it up", rank);
  world_->changed.notify_all();
  world_->changed.wait(lock, [&] { return meeting.in_progress == 0; });
  leave(place);
}

void ThreadGroup::look_for_absent(Meeting& meeting) const {
  if (!meeting.failure.empty()) return;
  meeting.failure = world_->failure;
  for (std::size_t rank = 0; rank < members_.size() && meeting.failure.empty(); ++rank) {
    if (meeting.here[rank] || !world_->ended[static_cast<std::size_t>(members_[rank])]) continue;
    meeting.failure = fmt::format("rank {} has ended and does not take part", rank);
  }
}

std::string ThreadGroup::disagreement(const Meeting& meeting) const {
  const Contribution& first = meeting.contributions.front();
  for (std::size_t rank = 1; rank < members_.size(); ++rank) {
    const Contribution& other = meeting.contributions[rank];
    if (first.agrees_with(other)) continue;
    return fmt::format("rank 0 is in {} of {} {} ({}), rank {} in {} of {} {} ({})", first.operation, first.count,
                       name_of(first.dtype), first.detail, rank, other.operation, other.count, name_of(other.dtype),
                       other.detail);
  }
  return "";
}

void ThreadGroup::leave(std::uint64_t place) {
  const auto found = meetings_.find(place);
  if (++found->second.left == size()) meetings_.erase(found);
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
