// One connection of http_server.cc. Part of its implementation: nothing else includes this.
#pragma once

#include <atomic>
#include <boost/asio.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "infer/server/http_server.h"

namespace kvloom {

namespace asio = boost::asio;
namespace beast = boost::beast;
using Tcp = asio::ip::tcp;

class HttpSession : public std::enable_shared_from_this<HttpSession> {
 public:
  HttpSession(Tcp::socket socket, const HttpServerOptions& options);

  // Requests one after the other until the connection ends.
  asio::awaitable<void> run();
  // Answers 503 and closes: there are too many connections.
  asio::awaitable<void> turn_away();
  // After the answer under way, if there is one, else now.
  void close_when_idle();
  void close_now();

 private:
  using Parser = beast::http::request_parser<beast::http::string_body>;
  enum class Waiting { kForRequest, kForHandler, kEnded };

  asio::awaitable<bool> read_request(Parser& parser);
  asio::awaitable<bool> wait_for_bytes();
  asio::awaitable<bool> refuse(int status, std::string reason);
  asio::awaitable<bool> exchange(Parser& parser);
  asio::awaitable<bool> answer(const std::shared_ptr<Exchange>& exchange);
  asio::awaitable<bool> send_part(Exchange& exchange, Exchange::Part part);
  asio::awaitable<void> watch();
  asio::awaitable<void> stop_watching();
  asio::awaitable<bool> write(std::string text);
  asio::awaitable<void> linger();

  std::string head_of(const HttpResponse& response, std::optional<std::size_t> length) const;
  void wake_up();
  void set_deadline(std::chrono::milliseconds time);
  void clear_deadline();

  Tcp::socket socket_;
  const HttpServerOptions& options_;
  asio::steady_timer deadline_;
  asio::steady_timer wake_;  // never expires: cancelled when the exchange has something, or the watch ends
  std::size_t deadlines_ = 0;
  bool timed_out_ = false;
  bool watching_ = false;
  bool watched_enough_ = false;
  bool closing_ = false;  // no further request
  Waiting waiting_ = Waiting::kForRequest;
  beast::flat_buffer buffer_;
  // Of the request under way.
  std::shared_ptr<Exchange> answering_;
  bool head_only_ = false;
  bool chunked_ = false;
  bool keep_alive_ = true;
  HttpRecord record_;
};

}  // namespace kvloom
