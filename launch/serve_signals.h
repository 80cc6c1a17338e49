// Signals of a server, taken by a thread of their own.
#pragma once

#include <atomic>
#include <csignal>
#include <functional>
#include <thread>

namespace kvloom {

// While it is there, SIGTERM, SIGINT and SIGUSR1 wait for a SignalWatch, in the thread that made it and those that it
// starts. SIGPIPE is ignored.
class HeldSignals {
 public:
  HeldSignals();
  ~HeldSignals();
  HeldSignals(const HeldSignals&) = delete;
  HeldSignals& operator=(const HeldSignals&) = delete;

  const sigset_t& set() const { return signals_; }

 private:
  sigset_t signals_{};
  sigset_t before_{};
};

struct SignalActions {
  std::function<void()> end;    // SIGTERM, SIGINT: called once; a second one ends the process at once
  std::function<void()> state;  // SIGUSR1
};

// Hears them, those that came before too, until it goes.
class SignalWatch {
 public:
  SignalWatch(const HeldSignals& held, SignalActions actions);
  ~SignalWatch();
  SignalWatch(const SignalWatch&) = delete;
  SignalWatch& operator=(const SignalWatch&) = delete;

 private:
  void run();

  const HeldSignals& held_;
  SignalActions actions_;
  std::atomic<bool> over_ = false;
  std::thread thread_;
};

}  // namespace kvloom
