// A client of HTTP/1.1 for tests: one connection, and no more patience than a test has.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace kvloom::test {

struct HttpReply {
  int status = 0;  // 0: the connection ended before an answer came
  std::string head;
  std::string body;
  bool whole = false;  // it ended as it should

  nlohmann::ordered_json json() const { return nlohmann::ordered_json::parse(body); }
  std::string header(std::string name) const {
    const auto lower = [](std::string text) {
      for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
      return text;
    };
    const std::string mark = "\r\n" + lower(std::move(name)) + ": ";
    const std::size_t at = lower(head).find(mark);
    if (at == std::string::npos) return {};
    return head.substr(at + mark.size(), head.find("\r\n", at + mark.size()) - at - mark.size());
  }
  // What stands after "data: " of each event of a stream.
  std::vector<std::string> events() const {
    std::vector<std::string> events;
    for (std::size_t at = 0; at < body.size();) {
      const std::size_t end = body.find("\n\n", at);
      EXPECT_NE(end, std::string::npos) << "an event that does not end: " << body.substr(at);
      if (end == std::string::npos) break;
      const std::string event = body.substr(at, end - at);
      EXPECT_TRUE(event.starts_with("data: ")) << event;
      events.push_back(event.substr(std::min<std::size_t>(6, event.size())));
      at = end + 2;
    }
    return events;
  }
};

class HttpClient {
 public:
  // `receive_buffer`: of the system; small ones make a slow reader.
  explicit HttpClient(std::uint16_t port, int receive_buffer = 0) : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    if (receive_buffer > 0) ::setsockopt(socket_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof(receive_buffer));
    const timeval patience{.tv_sec = 60, .tv_usec = 0};
    ::setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    const int on = 1;
    ::setsockopt(socket_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = ::connect(socket_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
  }
  ~HttpClient() { close(); }
  HttpClient(const HttpClient&) = delete;
  HttpClient& operator=(const HttpClient&) = delete;

  bool connected() const { return connected_; }
  int descriptor() const { return socket_; }
  void close() {
    if (socket_ >= 0) ::close(std::exchange(socket_, -1));
  }
  // With a reset instead of a farewell.
  void reset() {
    const linger abrupt{.l_onoff = 1, .l_linger = 0};
    ::setsockopt(socket_, SOL_SOCKET, SO_LINGER, &abrupt, sizeof(abrupt));
    close();
  }

  // False where the server has closed.
  bool send(std::string_view bytes) {
    while (!bytes.empty()) {
      const auto count = ::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (count <= 0) return false;
      bytes.remove_prefix(static_cast<std::size_t>(count));
    }
    return true;
  }

  using Headers = std::vector<std::pair<std::string, std::string>>;
  static std::string request_text(const std::string& method, const std::string& path, const std::string& body,
                                  const Headers& headers = {}) {
    std::string text = method + " " + path + " HTTP/1.1\r\nHost: localhost\r\n";
    bool has_type = method != "POST";
    for (const auto& [name, value] : headers) {
      text += name + ": " + value + "\r\n";
      has_type |= name == "Content-Type";
    }
    if (!has_type) text += "Content-Type: application/json\r\n";
    if (!body.empty() || method == "POST") text += "Content-Length: " + std::to_string(body.size()) + "\r\n";
    return text + "\r\n" + body;
  }

  HttpReply ask(const std::string& method, const std::string& path, const std::string& body = {},
                const Headers& headers = {}) {
    send(request_text(method, path, body, headers));
    return receive(method != "HEAD");
  }

  // More bytes; false at the end of the connection.
  bool read_more() {
    char bytes[65536];
    const auto count = ::recv(socket_, bytes, sizeof(bytes), 0);
    if (count > 0) buffer_.append(bytes, static_cast<std::size_t>(count));
    return count > 0;
  }
  const std::string& unread() const { return buffer_; }

  HttpReply receive(bool has_body = true) {
    HttpReply reply;
    if (!read_until("\r\n\r\n")) return reply;
    reply.head = cut(buffer_.find("\r\n\r\n") + 4);
    reply.status = std::atoi(reply.head.substr(9, 3).c_str());
    if (reply.status == 100) return receive(has_body);
    if (!has_body) {
      reply.whole = true;
    } else if (const std::string length = reply.header("Content-Length"); !length.empty()) {
      const auto count = static_cast<std::size_t>(std::atoll(length.c_str()));
      while (buffer_.size() < count && read_more()) {
      }
      reply.whole = buffer_.size() >= count;
      reply.body = cut(std::min(count, buffer_.size()));
    } else if (reply.header("Transfer-Encoding") == "chunked") {
      reply.whole = read_chunks(reply.body);
    } else {
      while (read_more()) {
      }
      reply.body = cut(buffer_.size());
      reply.whole = true;
    }
    return reply;
  }

  // The next event of a stream whose head was received; nothing at its end.
  bool receive_head(HttpReply& reply) {
    if (!read_until("\r\n\r\n")) return false;
    reply.head = cut(buffer_.find("\r\n\r\n") + 4);
    reply.status = std::atoi(reply.head.substr(9, 3).c_str());
    return true;
  }
  bool receive_chunk(std::string& body) {
    if (!read_until("\r\n")) return false;
    const auto size = static_cast<std::size_t>(std::strtoull(cut(buffer_.find("\r\n") + 2).c_str(), nullptr, 16));
    while (buffer_.size() < size + 2) {
      if (!read_more()) return false;
    }
    body += cut(size);
    cut(2);
    return size > 0;
  }

 private:
  bool read_until(const char* mark) {
    while (buffer_.find(mark) == std::string::npos) {
      if (!read_more()) return false;
    }
    return true;
  }
  bool read_chunks(std::string& body) {
    while (receive_chunk(body)) {
    }
    return ended_;
  }
  std::string cut(std::size_t count) {
    std::string front = buffer_.substr(0, count);
    buffer_.erase(0, count);
    if (front == "0\r\n") ended_ = true;
    return front;
  }

  int socket_;
  bool connected_ = false;
  bool ended_ = false;
  std::string buffer_;
};

}  // namespace kvloom::test
