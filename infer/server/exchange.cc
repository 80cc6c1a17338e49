#include "infer/server/exchange.h"

#include <algorithm>
#include <utility>

namespace kvloom {

// Wakes the connection, once for all that it has not taken yet.
void Exchange::leave(std::unique_lock<std::mutex>& lock) {
  const bool wake = !std::exchange(woken_, true);
  lock.unlock();
  if (wake) wake_();
}

void Exchange::answer(HttpResponse response) {
  std::function<void()> unneeded;  // goes after the lock: it may hold what holds this
  std::unique_lock lock(mutex_);
  if (state_ != State::kWaiting) return;
  state_ = State::kEnded;
  unneeded = std::exchange(notify_, nullptr);
  next_.head = std::move(response);
  next_.whole = true;
  next_.ended = true;
  leave(lock);
}

void Exchange::begin(HttpResponse head) {
  std::unique_lock lock(mutex_);
  if (state_ != State::kWaiting) return;
  state_ = State::kStreaming;
  next_.text = std::exchange(head.body, {});
  unsent_ += next_.text.size();
  next_.head = std::move(head);
  leave(lock);
}

void Exchange::write(std::string text) {
  std::unique_lock lock(mutex_);
  if (state_ != State::kStreaming) return;
  unsent_ += text.size();
  std::function<void()> notify;
  if (unsent_ > unsent_limit_) {
    state_ = State::kGone;
    next_.text.clear();
    next_.dropped = true;
    woken_ = false;  // the connection may be writing: it must hear of it all the same
    notify = std::exchange(notify_, nullptr);
  } else {
    next_.text += text;
  }
  leave(lock);
  if (notify) notify();
}

void Exchange::end() {
  std::function<void()> unneeded;
  std::unique_lock lock(mutex_);
  if (state_ != State::kStreaming) return;
  state_ = State::kEnded;
  unneeded = std::exchange(notify_, nullptr);
  next_.ended = true;
  leave(lock);
}

void Exchange::when_gone(std::function<void()> notify) {
  std::unique_lock lock(mutex_);
  if (state_ == State::kEnded) return;
  if (state_ != State::kGone) {
    notify_ = std::move(notify);
    return;
  }
  lock.unlock();
  notify();
}

bool Exchange::is_gone() const {
  const std::lock_guard lock(mutex_);
  return state_ == State::kGone;
}

Exchange::Part Exchange::take() {
  const std::lock_guard lock(mutex_);
  woken_ = false;
  Part part = std::exchange(next_, {});
  part.ended = state_ == State::kEnded;
  part.dropped = state_ == State::kGone;
  return part;
}

void Exchange::sent(std::size_t bytes) {
  const std::lock_guard lock(mutex_);
  unsent_ -= std::min(unsent_, bytes);
}

void Exchange::gone() {
  std::unique_lock lock(mutex_);
  if (state_ == State::kGone) return;
  const bool was_ended = state_ == State::kEnded;
  state_ = State::kGone;
  std::function<void()> notify = std::exchange(notify_, nullptr);
  lock.unlock();
  if (notify && !was_ended) notify();
}

}  // namespace kvloom
