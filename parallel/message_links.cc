#include "parallel/message_links.h"

#include <poll.h>

#include <cstring>

#include "kernels/error.h"

namespace kvloom {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kPatience{30000};

Socket link_to(const std::string& address) {
  const std::size_t colon = address.rfind(':');
  const std::string machine = address.substr(0, colon);
  const int port = std::stoi(address.substr(colon + 1));
  // The own machine's name need not resolve.
  return Socket::connect(machine == host_name() ? "127.0.0.1" : machine, port, after(kPatience));
}

}  // namespace

MessageLinks::MessageLinks() : listener_(Socket::listen(0)) {}

std::string MessageLinks::address() const { return fmt::format("{}:{}", host_name(), listener_.port()); }

void MessageLinks::send(int to, const MessageHeader& header) {
  try {
    Socket& socket = outgoing_[to];
    if (!socket.open()) socket = link_to(addresses_.at(static_cast<std::size_t>(to)));
    socket.write({reinterpret_cast<const char*>(&header), sizeof(header)}, after(kPatience));
  } catch (const Error& error) {
    fail("rank {} cannot be told of a message: {}", to, error.what());
  }
}

std::vector<MessageHeader> MessageLinks::poll(milliseconds time) {
  std::vector<pollfd> entries{{listener_.descriptor(), POLLIN, 0}};
  for (const Incoming& incoming : incoming_) entries.push_back({incoming.socket.descriptor(), POLLIN, 0});
  std::vector<MessageHeader> headers;
  if (::poll(entries.data(), entries.size(), static_cast<int>(time.count())) <= 0) return headers;

  std::vector<Incoming> kept;
  for (std::size_t i = 0; i < incoming_.size(); ++i) {
    const bool alive = entries[i + 1].revents == 0 || take(incoming_[i], headers);
    if (alive) kept.push_back(std::move(incoming_[i]));
  }
  incoming_ = std::move(kept);
  if (entries[0].revents != 0) {
    if (auto socket = listener_.accept(after(milliseconds(0)))) incoming_.push_back({std::move(*socket), {}});
  }
  return headers;
}

bool MessageLinks::take(Incoming& incoming, std::vector<MessageHeader>& headers) {
  if (!incoming.socket.read_some(incoming.partial)) return false;
  std::size_t used = 0;
  for (; incoming.partial.size() - used >= sizeof(MessageHeader); used += sizeof(MessageHeader)) {
    MessageHeader header;
    std::memcpy(static_cast<void*>(&header), incoming.partial.data() + used, sizeof(header));
    if (header.mark != MessageHeader().mark) return false;
    headers.push_back(header);
  }
  incoming.partial.erase(0, used);
  return true;
}

}  // namespace kvloom
