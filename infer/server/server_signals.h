// Signals of a server, taken by a thread of their own.
#pragma once

#include <array>
#include <csignal>
#include <functional>
#include <thread>

namespace kvloom {

// While it is there, SIGTERM, SIGINT and SIGUSR1, in whichever thread they come (MPI has threads of its own), are kept
// for a SignalWatch. SIGPIPE is ignored. A process has one at a time.
class HeldSignals {
 public:
  HeldSignals();
  ~HeldSignals();
  HeldSignals(const HeldSignals&) = delete;
  HeldSignals& operator=(const HeldSignals&) = delete;

  // Waits for the next one, those that came before too; 0 after stop().
  int next() const;
  void stop() const;

 private:
  static constexpr std::array kSignals = {SIGTERM, SIGINT, SIGUSR1};
  std::array<struct sigaction, kSignals.size()> before_{};
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
  std::thread thread_;
};

}  // namespace kvloom
