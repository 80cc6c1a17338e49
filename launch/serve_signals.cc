#include "launch/serve_signals.h"

#include <pthread.h>
#include <unistd.h>

#include <utility>

namespace kvloom {

HeldSignals::HeldSignals() {
  sigemptyset(&signals_);
  for (const int signal : {SIGTERM, SIGINT, SIGUSR1}) sigaddset(&signals_, signal);
  pthread_sigmask(SIG_BLOCK, &signals_, &before_);
  std::signal(SIGPIPE, SIG_IGN);
}

HeldSignals::~HeldSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

SignalWatch::SignalWatch(const HeldSignals& held, SignalActions actions)
    : held_(held), actions_(std::move(actions)), thread_([this] { run(); }) {}

SignalWatch::~SignalWatch() {
  over_ = true;
  pthread_kill(thread_.native_handle(), SIGUSR1);
  thread_.join();
}

void SignalWatch::run() {
  bool ending = false;
  for (int signal = 0; sigwait(&held_.set(), &signal) == 0 && !over_;) {
    if (signal == SIGUSR1) {
      actions_.state();
    } else if (std::exchange(ending, true)) {
      _exit(1);
    } else {
      actions_.end();
    }
  }
}

}  // namespace kvloom
