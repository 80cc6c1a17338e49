#include "parallel/socket.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <thread>

#include "kernels/error.h"

namespace kvloom {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kBetweenTries{50};

int milliseconds_until(Deadline deadline) {
  const auto left = std::chrono::ceil<milliseconds>(deadline - std::chrono::steady_clock::now()).count();
  return static_cast<int>(std::clamp<std::int64_t>(left, 0, 1 << 30));
}

// False when the deadline passed first.
bool ready(int descriptor, short events, Deadline deadline) {
  while (true) {
    pollfd entry{descriptor, events, 0};
    const int count = poll(&entry, 1, milliseconds_until(deadline));
    if (count > 0) return true;
    if (count == 0) return false;
    if (errno != EINTR) return true;  // the call that follows says what is wrong
  }
}

void prepare(int descriptor) {
  const int yes = 1;
  setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
  fcntl(descriptor, F_SETFL, fcntl(descriptor, F_GETFL) | O_NONBLOCK);
}

using AddressList = std::unique_ptr<addrinfo, decltype(&freeaddrinfo)>;

AddressList addresses_of(const std::string& host, int port) {
  addrinfo hints{};
  hints.ai_family = AF_INET;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* list = nullptr;
  const int code = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &list);
  if (code != 0) fail("{}:{}: {}", host, port, gai_strerror(code));
  return {list, &freeaddrinfo};
}

// A connected descriptor, or -1 with errno set.
int try_to_connect(const addrinfo& address, Deadline deadline) {
  const int descriptor = socket(address.ai_family, address.ai_socktype | SOCK_CLOEXEC, address.ai_protocol);
  if (descriptor < 0) return -1;
  prepare(descriptor);
  int error = 0;
  if (connect(descriptor, address.ai_addr, address.ai_addrlen) != 0) {
    error = errno;
    if (error == EINPROGRESS) {
      socklen_t length = sizeof(error);
      if (!ready(descriptor, POLLOUT, deadline)) {
        error = ETIMEDOUT;
      } else {
        getsockopt(descriptor, SOL_SOCKET, SO_ERROR, &error, &length);
      }
    }
  }
  if (error == 0) return descriptor;
  close(descriptor);
  errno = error;
  return -1;
}

}  // namespace

Socket::~Socket() {
  if (descriptor_ >= 0) close(descriptor_);
}

Socket& Socket::operator=(Socket&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  std::swap(peer_, other.peer_);
  return *this;
}

Socket Socket::listen(int port) {
  Socket listener(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), fmt::format("port {}", port));
  const int yes = 1;
  setsockopt(listener.descriptor_, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_ANY);
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  if (bind(listener.descriptor_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 ||
      ::listen(listener.descriptor_, SOMAXCONN) != 0) {
    fail("port {}: cannot listen: {}", port, std::strerror(errno));
  }
  prepare(listener.descriptor_);
  return listener;
}

Socket Socket::connect(const std::string& host, int port, Deadline deadline) {
  const AddressList addresses = addresses_of(host, port);
  while (true) {
    for (const addrinfo* address = addresses.get(); address != nullptr; address = address->ai_next) {
      const int descriptor = try_to_connect(*address, deadline);
      if (descriptor >= 0) return {descriptor, fmt::format("{}:{}", host, port)};
    }
    const int error = errno;
    if (after(kBetweenTries) > deadline) fail("{}:{}: cannot connect: {}", host, port, std::strerror(error));
    std::this_thread::sleep_for(kBetweenTries);
  }
}

int Socket::port() const {
  sockaddr_in address{};
  socklen_t length = sizeof(address);
  if (getsockname(descriptor_, reinterpret_cast<sockaddr*>(&address), &length) != 0) {
    fail("{}: getsockname: {}", peer_, std::strerror(errno));
  }
  return ntohs(address.sin_port);
}

std::optional<Socket> Socket::accept(Deadline deadline) const {
  while (ready(descriptor_, POLLIN, deadline)) {
    sockaddr_in address{};
    socklen_t length = sizeof(address);
    const int descriptor = accept4(descriptor_, reinterpret_cast<sockaddr*>(&address), &length, SOCK_CLOEXEC);
    if (descriptor >= 0) {
      prepare(descriptor);
      std::array<char, NI_MAXHOST> name{};
      getnameinfo(reinterpret_cast<const sockaddr*>(&address), length, name.data(), name.size(), nullptr, 0,
                  NI_NUMERICHOST);
      return Socket(descriptor, name.data());
    }
    if (errno != EAGAIN && errno != ECONNABORTED && errno != EINTR) fail("{}: accept: {}", peer_, std::strerror(errno));
  }
  return std::nullopt;
}

void Socket::write(std::string_view bytes, Deadline deadline) const {
  while (!bytes.empty()) {
    const ssize_t count = send(descriptor_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (count >= 0) {
      bytes.remove_prefix(static_cast<std::size_t>(count));
    } else if (errno == EAGAIN || errno == EINTR) {
      if (!ready(descriptor_, POLLOUT, deadline)) fail("{}: takes no data", peer_);
    } else {
      fail("{}: {}", peer_, std::strerror(errno));
    }
  }
}

std::string Socket::read(std::size_t bytes, Deadline deadline) const {
  std::string result(bytes, '\0');
  std::size_t done = 0;
  while (done < bytes) {
    const ssize_t count = recv(descriptor_, result.data() + done, bytes - done, 0);
    if (count > 0) {
      done += static_cast<std::size_t>(count);
    } else if (count == 0) {
      fail("{}: closed the connection", peer_);
    } else if (errno == EAGAIN || errno == EINTR) {
      if (!ready(descriptor_, POLLIN, deadline)) fail("{}: did not answer in time", peer_);
    } else {
      fail("{}: {}", peer_, std::strerror(errno));
    }
  }
  return result;
}

bool Socket::read_some(std::string& bytes) const {
  std::array<char, 4096> piece;
  while (true) {
    const ssize_t count = recv(descriptor_, piece.data(), piece.size(), 0);
    if (count > 0) bytes.append(piece.data(), static_cast<std::size_t>(count));
    if (count == 0) return false;
    if (count < 0 && errno != EINTR) return errno == EAGAIN;
  }
}

std::string host_name() {
  std::array<char, 256> name{};
  if (gethostname(name.data(), name.size() - 1) != 0) return "localhost";
  return name.data();
}

}  // namespace kvloom
