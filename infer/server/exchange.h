// The answer to one request, given from any thread: whole, or as a stream.
#pragma once

#include <cstddef>
#include <functional>
#include <mutex>
#include <optional>
#include <string>

#include "infer/server/http_types.h"

namespace kvloom {

class Exchange {
 public:
  enum class State { kWaiting, kStreaming, kEnded, kGone };

  // `wake` is called, from any thread, when there is something new to take.
  Exchange(std::size_t unsent_bytes, std::function<void()> wake)
      : unsent_limit_(unsent_bytes), wake_(std::move(wake)) {}

  // The handler's side. Nothing happens where the client has gone or the answer has ended.
  void answer(HttpResponse response);  // whole
  void begin(HttpResponse head);       // a stream: status and headers, and its body as the first part
  void write(std::string text);        // more of a stream. The client is dropped where too much of it is unsent.
  void end();
  // Called once where the client goes, or is dropped, before the answer has ended: now if that has happened already,
  // else from the thread that finds out.
  void when_gone(std::function<void()> notify);
  bool is_gone() const;

  // The connection's side.
  struct Part {
    std::optional<HttpResponse> head;
    std::string text;
    bool whole = false;  // the head's body is all of the answer
    bool ended = false;
    bool dropped = false;  // the client is too slow: close
  };
  // What has come since, which then counts as unsent until `sent` is called.
  Part take();
  void sent(std::size_t bytes);
  void gone();

 private:
  void leave(std::unique_lock<std::mutex>& lock);

  mutable std::mutex mutex_;
  const std::size_t unsent_limit_;
  std::function<void()> wake_;
  std::function<void()> notify_;
  State state_ = State::kWaiting;
  Part next_;
  std::size_t unsent_ = 0;
  bool woken_ = false;
};

}  // namespace kvloom
