#include "infer/server/http_session.h"

#include <fmt/format.h>

#include <random>
#include <utility>

namespace kvloom {
namespace {

namespace http = beast::http;

constexpr std::size_t kReadAhead = 64 << 10;  // of requests that are sent before the one under way is answered
constexpr std::chrono::milliseconds kLinger{2000};
constexpr std::size_t kLingerBytes = std::size_t{32} << 20;

auto returning(boost::system::error_code& error) { return asio::redirect_error(asio::use_awaitable, error); }

std::string new_id() {
  static const std::uint64_t run = std::random_device{}() | (std::uint64_t{std::random_device{}()} << 32U);
  static std::atomic<std::uint64_t> count = 0;
  return fmt::format("{:016x}-{}", run, ++count);
}

std::string line_safe(const std::string& text) {
  std::string safe;
  for (const char c : text) {
    if (static_cast<unsigned char>(c) >= 0x20 && c != 0x7f) safe += c;
  }
  return safe;
}

int status_of(const boost::system::error_code& error) {
  if (error == http::error::header_limit) return 431;
  if (error == http::error::body_limit) return 413;
  return 400;
}

std::string reason_of(int status, const HttpLimits& limits) {
  switch (status) {
    case 413:
      return fmt::format("the body is too long; right is up to {} bytes", limits.body_bytes);
    case 431:
      return fmt::format("the headers are too long; right is up to {} bytes", limits.header_bytes);
    default:
      return "this is no HTTP/1.1 request";
  }
}

}  // namespace

HttpSession::HttpSession(Tcp::socket socket, const HttpServerOptions& options)
    : socket_(std::move(socket)), options_(options), deadline_(socket_.get_executor()), wake_(socket_.get_executor()) {
  boost::system::error_code ignored;
  socket_.set_option(Tcp::no_delay(true), ignored);
  if (options_.limits.send_buffer_bytes > 0) {
    socket_.set_option(asio::socket_base::send_buffer_size(options_.limits.send_buffer_bytes), ignored);
  }
}

void HttpSession::set_deadline(std::chrono::milliseconds time) {
  timed_out_ = false;
  deadline_.expires_after(time);
  deadline_.async_wait([self = shared_from_this(), number = ++deadlines_](const boost::system::error_code& error) {
    if (error || number != self->deadlines_) return;
    self->timed_out_ = true;
    boost::system::error_code ignored;
    self->socket_.cancel(ignored);
  });
}

void HttpSession::clear_deadline() {
  ++deadlines_;
  deadline_.cancel();
}

void HttpSession::close_when_idle() {
  closing_ = true;
  if (waiting_ == Waiting::kForRequest) close_now();
}

void HttpSession::close_now() {
  closing_ = true;
  boost::system::error_code ignored;
  socket_.close(ignored);
  wake_.cancel();
}

asio::awaitable<void> HttpSession::run() {
  const auto self = shared_from_this();
  while (!closing_) {
    Parser parser;
    if (!co_await read_request(parser)) break;
    if (!co_await exchange(parser)) break;
  }
  waiting_ = Waiting::kEnded;
  clear_deadline();
  boost::system::error_code ignored;
  socket_.close(ignored);
}

asio::awaitable<void> HttpSession::turn_away() {
  const auto self = shared_from_this();
  co_await refuse(503, "too many connections");
  boost::system::error_code ignored;
  socket_.close(ignored);
}

asio::awaitable<bool> HttpSession::wait_for_bytes() {
  if (buffer_.size() > 0) co_return true;
  boost::system::error_code error;
  set_deadline(options_.limits.idle_time);
  const std::size_t count = co_await socket_.async_read_some(buffer_.prepare(4096), returning(error));
  buffer_.commit(count);
  co_return !error;
}

// False where there is none: the connection is to be closed, and what is wrong has been said.
asio::awaitable<bool> HttpSession::read_request(Parser& parser) {
  waiting_ = Waiting::kForRequest;
  if (!co_await wait_for_bytes()) co_return false;
  waiting_ = Waiting::kForHandler;
  const HttpLimits& limits = options_.limits;
  parser.header_limit(limits.header_bytes);
  parser.body_limit(limits.body_bytes);
  boost::system::error_code error;
  set_deadline(limits.header_time);
  co_await http::async_read_header(socket_, buffer_, parser, returning(error));
  if (!error && parser.content_length().value_or(0) > limits.body_bytes) error = http::error::body_limit;
  if (!error && !parser.is_done()) {
    set_deadline(limits.body_time);
    const auto expect = parser.get()[http::field::expect];
    if (beast::iequals(expect, "100-continue")) {
      if (!co_await write("HTTP/1.1 100 Continue\r\n\r\n")) co_return false;
      set_deadline(limits.body_time);
    }
    co_await http::async_read(socket_, buffer_, parser, returning(error));
  }
  clear_deadline();
  if (!error) co_return true;
  if (timed_out_) {
    co_return co_await refuse(408, "the request did not come whole in time");
  }
  if (error == http::error::end_of_stream || error.category() != http::make_error_code(http::error{}).category() ||
      error == http::error::partial_message) {
    co_return false;  // the client has gone
  }
  co_return co_await refuse(status_of(error), reason_of(status_of(error), limits));
}

// Answers without asking the handler, and lets the client read that before the connection ends.
asio::awaitable<bool> HttpSession::refuse(int status, std::string reason) {
  keep_alive_ = false;
  const HttpResponse response = options_.refuse(status, reason);
  record_ = {.id = new_id(), .method = "-", .path = "-", .status = status, .outcome = "done"};
  if (co_await write(head_of(response, response.body.size()) + response.body)) co_await linger();
  options_.record(record_);
  co_return false;
}

// A connection that is closed while bytes come in is reset, and the client may never see the answer.
asio::awaitable<void> HttpSession::linger() {
  boost::system::error_code error;
  socket_.shutdown(Tcp::socket::shutdown_send, error);
  std::string rest(64 << 10, '\0');
  set_deadline(kLinger);
  for (std::size_t total = 0; !error && total < kLingerBytes;) {
    total += co_await socket_.async_read_some(asio::buffer(rest), returning(error));
  }
  clear_deadline();
}

asio::awaitable<bool> HttpSession::exchange(Parser& parser) {
  auto message = parser.release();
  const auto start = std::chrono::steady_clock::now();
  HttpRequest request{.id = new_id(),
                      .method = message.method_string(),
                      .path = message.target(),
                      .headers = {},
                      .body = std::move(message.body())};
  request.path.resize(std::min(request.path.find('?'), request.path.size()));
  for (const auto& field : message) request.headers.emplace_back(field.name_string(), field.value());
  head_only_ = message.method() == http::verb::head;
  chunked_ = message.version() >= 11;
  keep_alive_ = message.keep_alive();
  record_ = {.id = request.id, .method = request.method, .path = request.path};
  const auto wake = [session = weak_from_this(), executor = socket_.get_executor()] {
    asio::post(executor, [session] {
      if (const auto self = session.lock()) self->wake_up();
    });
  };
  const auto answering = std::make_shared<Exchange>(options_.limits.unsent_bytes, wake);
  answering_ = answering;
  options_.handle(std::move(request), answering);
  const bool goes_on = co_await answer(answering);
  answering_ = nullptr;
  record_.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  options_.record(record_);
  co_return goes_on&& keep_alive_ && !closing_;
}

// A client that was dropped may never take what is being sent to it.
void HttpSession::wake_up() {
  boost::system::error_code ignored;
  if (answering_ && answering_->is_gone()) socket_.close(ignored);
  wake_.cancel();
}

// Sends what the exchange brings, while a pending read tells when the client goes.
asio::awaitable<bool> HttpSession::answer(const std::shared_ptr<Exchange>& exchange) {
  watching_ = true;
  watched_enough_ = false;
  record_.outcome = "done";
  asio::co_spawn(socket_.get_executor(), watch(), asio::detached);
  bool whole = false;
  for (;;) {
    Exchange::Part part = exchange->take();
    if (part.dropped) record_.outcome = "client too slow";
    if (part.dropped || !watching_) break;
    const bool ended = part.ended;
    if (part.head || !part.text.empty() || ended) {
      if (!co_await send_part(*exchange, std::move(part))) {
        record_.outcome = timed_out_ || exchange->is_gone() ? "client too slow" : "client went";
        break;
      }
      if (ended) {
        whole = true;
        break;
      }
      continue;
    }
    boost::system::error_code cancelled;
    wake_.expires_at(asio::steady_timer::time_point::max());
    co_await wake_.async_wait(returning(cancelled));
  }
  if (!whole) {
    if (!watching_ && record_.outcome == "done") record_.outcome = socket_.is_open() ? "client went" : "server stopped";
    exchange->gone();
    boost::system::error_code ignored;
    socket_.close(ignored);
  }
  co_await stop_watching();
  co_return whole;
}

asio::awaitable<bool> HttpSession::send_part(Exchange& exchange, Exchange::Part part) {
  std::string text;
  const std::size_t fresh = part.text.size();
  if (part.head) {
    record_.status = part.head->status;
    if (part.whole) {
      text = head_of(*part.head, part.head->body.size());
      if (!head_only_) text += part.head->body;
    } else {
      if (!chunked_) keep_alive_ = false;
      text = head_of(*part.head, std::nullopt);
    }
  }
  if (!part.whole && !head_only_) {
    if (fresh > 0) text += chunked_ ? fmt::format("{:x}\r\n{}\r\n", fresh, part.text) : part.text;
    if (part.ended && chunked_) text += "0\r\n\r\n";
  }
  record_.sent_bytes += text.size();
  const bool done = co_await write(std::move(text));
  exchange.sent(fresh);
  co_return done;
}

asio::awaitable<bool> HttpSession::write(std::string text) {
  boost::system::error_code error;
  set_deadline(options_.limits.write_time);
  co_await asio::async_write(socket_, asio::buffer(text), returning(error));
  clear_deadline();
  co_return !error;
}

// Reads ahead what the client may send already, so that its end is seen when it comes. One that sends too much ahead is
// taken for gone.
asio::awaitable<void> HttpSession::watch() {
  const auto self = shared_from_this();
  boost::system::error_code error;
  while (!error && !watched_enough_ && buffer_.size() < kReadAhead) {
    const std::size_t count = co_await socket_.async_read_some(buffer_.prepare(4096), returning(error));
    buffer_.commit(count);
  }
  // After its end nothing may be read of a socket: Asio would wait for more.
  if (error && error != asio::error::operation_aborted) closing_ = true;
  watching_ = false;
  wake_.cancel();
}

asio::awaitable<void> HttpSession::stop_watching() {
  watched_enough_ = true;  // a read that has just ended begins no other
  while (watching_) {
    boost::system::error_code ignored;
    if (socket_.is_open()) socket_.cancel(ignored);
    wake_.expires_at(asio::steady_timer::time_point::max());
    co_await wake_.async_wait(returning(ignored));
  }
}

std::string HttpSession::head_of(const HttpResponse& response, std::optional<std::size_t> length) const {
  const auto reason = http::obsolete_reason(http::int_to_status(static_cast<unsigned>(response.status)));
  std::string head = fmt::format("HTTP/1.1 {} {}\r\nServer: kvloom\r\n", response.status, std::string(reason));
  const auto add = [&](const std::string& name, const std::string& value) {
    head += fmt::format("{}: {}\r\n", name, line_safe(value));
  };
  if (!response.content_type.empty()) add("Content-Type", response.content_type);
  for (const auto& [name, value] : response.headers) add(name, value);
  if (length) {
    add("Content-Length", std::to_string(*length));
  } else if (chunked_) {
    add("Transfer-Encoding", "chunked");
  }
  if (!keep_alive_ || closing_) add("Connection", "close");
  return head + "\r\n";
}

}  // namespace kvloom
