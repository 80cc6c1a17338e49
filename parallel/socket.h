// TCP between ranks: small messages at start-up and beside NCCL. Every failure throws Error naming the other side.
#pragma once

#include <chrono>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace kvloom {

using Deadline = std::chrono::steady_clock::time_point;

inline Deadline after(std::chrono::milliseconds time) { return std::chrono::steady_clock::now() + time; }

// A connection or a listener; closed when it goes away.
class Socket {
 public:
  Socket() = default;
  ~Socket();
  Socket(Socket&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)), peer_(std::move(other.peer_)) {}
  Socket& operator=(Socket&& other) noexcept;

  // On all of this machine's addresses; port 0 takes a free one.
  static Socket listen(int port);
  // Tries again until the deadline: the other side may not have started.
  static Socket connect(const std::string& host, int port, Deadline deadline);

  bool open() const { return descriptor_ >= 0; }
  int descriptor() const { return descriptor_; }
  int port() const;  // this side's

  // Nothing when nobody came.
  std::optional<Socket> accept(Deadline deadline) const;
  void write(std::string_view bytes, Deadline deadline) const;
  // Exactly so many bytes. `read` throws when the other side closes first.
  std::string read(std::size_t bytes, Deadline deadline) const;
  // Appends what is there without waiting. False when the other side has closed.
  bool read_some(std::string& bytes) const;

 private:
  Socket(int descriptor, std::string peer) : descriptor_(descriptor), peer_(std::move(peer)) {}

  int descriptor_ = -1;
  std::string peer_;  // for messages
};

// This machine's name, as it tells others.
std::string host_name();

}  // namespace kvloom
