// The engine in a thread of its own: commands go in through a bounded queue, events come out to whom they concern.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <variant>
#include <vector>

#include "infer/engine/engine.h"

namespace kvloom {

using Ticket = std::uint64_t;  // of what was submitted together

// Who asked. Called on the engine's thread, and must not wait; may call EngineThread::cancel.
class EventSink {
 public:
  virtual ~EventSink() = default;

  virtual void accepted() = 0;
  // Instead of accepted: none of the requests runs, and why.
  virtual void refused(const std::string& message) = 0;
  // Of the index-th request that was submitted. The last one of a text has its FinishReason.
  virtual void event(std::size_t index, const Event& event) = 0;
  // Nothing comes any more: the engine has failed, or is stopping.
  virtual void failed(const std::string& message) = 0;
};

// What is measured of the requests. Called on the engine's thread.
class EngineObserver {
 public:
  virtual ~EngineObserver() = default;

  virtual void first_token(double seconds_after_submit) = 0;
  virtual void next_token(double seconds_after_the_last) = 0;
  virtual void finished(const Event& last) = 0;
  virtual void cancelled(std::size_t texts) = 0;
};

class EngineThread {
 public:
  enum class Submission { kQueued, kFull, kDraining };

  // `engine` is the thread's alone from now on, until `stop` returns. `most_texts`: under way at one time, running or
  // waiting. `observer` may be null.
  EngineThread(Engine& engine, std::size_t most_texts, EngineObserver* observer);
  ~EngineThread();
  EngineThread(const EngineThread&) = delete;
  EngineThread& operator=(const EngineThread&) = delete;

  // All of the functions may be called from any thread.

  // All of the requests or none. Of kQueued alone something comes to the sink; `ticket` is set before that.
  Submission submit(std::vector<Request> requests, const std::shared_ptr<EventSink>& sink, std::atomic<Ticket>& ticket);
  // Nothing of it comes any more, once the step under way is done. Unknown ones are left alone.
  void cancel(Ticket ticket);
  void cancel(Ticket ticket, std::size_t index, int choice);

  // From now on nothing is accepted.
  void drain();
  bool is_draining() const { return draining_; }
  // Ends what runs, whose sinks hear `message`, and the thread.
  void stop(const std::string& message);
  // Texts that were submitted and have not ended.
  std::size_t texts() const { return texts_; }
  // As of the last step.
  EngineCounts counts() const;
  // Seconds on the clock of Request::deadline.
  double now() const;
  // Called once on the engine's thread if the engine fails: nothing runs after that.
  void when_failed(std::function<void(const std::string&)> notify);
  std::string failure() const;

 private:
  struct Submit {
    Ticket ticket;
    std::vector<Request> requests;
    std::shared_ptr<EventSink> sink;
    double at;
  };
  struct Cancel {
    Ticket ticket;
    std::optional<std::pair<std::size_t, int>> text;  // nothing: all
  };
  using Command = std::variant<Submit, Cancel>;

  struct Text {
    double last = 0;  // when its last token came
    bool begun = false;
  };
  struct Group {
    std::shared_ptr<EventSink> sink;
    std::vector<RequestId> requests;
    std::map<std::pair<std::size_t, int>, Text> texts;  // that have not ended
    double submitted = 0;
  };

  void run();
  void serve();
  bool take_commands(std::deque<Command>& commands);
  void apply(Submit& command);
  void apply(const Cancel& command);
  void deliver(const std::vector<Event>& events);
  void observe(Group& group, Text& text, const Event& event) const;
  void end_text(Ticket ticket, std::pair<std::size_t, int> text);
  void forget(Ticket ticket);
  void end_all(const std::string& message);
  void publish();

  Engine& engine_;
  const std::size_t most_texts_;
  EngineObserver* observer_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Command> commands_;
  bool stopping_ = false;
  std::string stop_message_;
  std::string failure_;
  EngineCounts published_;
  std::function<void(const std::string&)> when_failed_;
  std::atomic<bool> draining_ = false;
  std::atomic<std::size_t> texts_ = 0;
  Ticket next_ticket_ = 1;

  // The thread's own.
  std::unordered_map<Ticket, Group> groups_;
  std::unordered_map<RequestId, std::pair<Ticket, std::size_t>> owners_;
  std::mutex join_mutex_;
  std::thread thread_;
};

}  // namespace kvloom
