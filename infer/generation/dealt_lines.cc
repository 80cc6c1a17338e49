#include "infer/generation/dealt_lines.h"

#include <chrono>
#include <span>
#include <thread>
#include <utility>

namespace kvloom {
namespace {

constexpr int kTag = 3;

}  // namespace

DealtLines::DealtLines(Communicator& leaders) : leaders_(leaders) {
  for (int replica = 1; leaders.rank() == 0 && replica < leaders.size(); ++replica) {
    Awaited& awaited = *(awaited_[replica] = std::make_unique<Awaited>());
    awaited.begin = leaders.irecv(std::span(&awaited.length, 1), replica, kTag);
  }
}

void DealtLines::give(std::string answer) {
  if (leaders_.rank() == 0) return own_.push_back(std::move(answer));
  const auto length = std::ssize(answer);
  send(length, std::move(answer));
}

void DealtLines::send(std::int64_t length, std::string text) {
  sent_.add({length, std::move(text)}, [&](TextMessage& message, std::vector<Transfer>& transfers) {
    start_text(message, leaders_, 0, kTag, transfers);
  });
}

bool DealtLines::take(std::string& answer) {
  const int replica = static_cast<int>(written_ % leaders_.size());
  if (replica == 0) {
    at_end_ = own_.empty() && has_finished_;
    if (own_.empty()) return false;
    answer = std::move(own_.front());
    own_.pop_front();
    return true;
  }
  Awaited& awaited = *awaited_.at(replica);
  if (!awaited.begin.done()) return false;
  awaited.begin.wait();
  at_end_ = awaited.length == kEnd;
  if (at_end_) return false;
  answer = receive_text(leaders_, awaited.length, replica, kTag);
  awaited.begin = leaders_.irecv(std::span(&awaited.length, 1), replica, kTag);
  return true;
}

void DealtLines::write_what_came(const std::function<void(std::int64_t line, const std::string& answer)>& write) {
  for (std::string answer; leaders_.rank() == 0 && !at_end_ && take(answer); ++written_) write(written_, answer);
}

void DealtLines::finish(const std::function<void(std::int64_t line, const std::string& answer)>& write) {
  has_finished_ = true;
  if (leaders_.rank() > 0) {
    send(kEnd, {});
    sent_.finish();
    return;
  }
  while (!at_end_) {
    write_what_came(write);
    if (!at_end_) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  // The others' last word, where it was not asked for.
  for (auto& [replica, awaited] : awaited_) awaited->begin.wait();
}

}  // namespace kvloom
