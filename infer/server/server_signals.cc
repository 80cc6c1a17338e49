#include "infer/server/server_signals.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "kernels/error.h"

namespace kvloom {
namespace {

// Each signal is a byte in a pipe: all that a handler may do. When the pipe is full, signals enough wait in it.
int pipe_ends[2] = {-1, -1};

void write_byte(int number) {
  const int error = errno;
  const auto byte = static_cast<unsigned char>(number);
  [[maybe_unused]] const auto written = ::write(pipe_ends[1], &byte, 1);
  errno = error;
}

}  // namespace

HeldSignals::HeldSignals() {
  if (::pipe2(pipe_ends, O_CLOEXEC) != 0) fail("signals: there is no pipe for them");
  ::fcntl(pipe_ends[1], F_SETFL, O_NONBLOCK);
  struct sigaction action {};
  action.sa_handler = write_byte;
  action.sa_flags = SA_RESTART;
  for (std::size_t i = 0; i < kSignals.size(); ++i) ::sigaction(kSignals[i], &action, &before_[i]);
  std::signal(SIGPIPE, SIG_IGN);
}

HeldSignals::~HeldSignals() {
  for (std::size_t i = 0; i < kSignals.size(); ++i) ::sigaction(kSignals[i], &before_[i], nullptr);
  for (int& end : pipe_ends) ::close(std::exchange(end, -1));
}

int HeldSignals::next() const {
  unsigned char byte = 0;
  while (::read(pipe_ends[0], &byte, 1) < 0 && errno == EINTR) {
  }
  return byte;
}

void HeldSignals::stop() const { write_byte(0); }

SignalWatch::SignalWatch(const HeldSignals& held, SignalActions actions)
    : held_(held), actions_(std::move(actions)), thread_([this] { run(); }) {}

SignalWatch::~SignalWatch() {
  held_.stop();
  thread_.join();
}

void SignalWatch::run() {
  bool ending = false;
  for (int signal = held_.next(); signal != 0; signal = held_.next()) {
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
