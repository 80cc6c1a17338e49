#include "infer/server/http_server.h"

#include <fmt/format.h>
#include <pthread.h>

#include <atomic>
#include <ctime>
#include <mutex>
#include <unordered_set>
#include <utility>

#include "infer/server/http_session.h"
#include "kernels/error.h"

namespace kvloom {

std::string_view HttpRequest::header(std::string_view name) const {
  for (const auto& [key, value] : headers) {
    if (beast::iequals(key, name)) return value;
  }
  return {};
}

class HttpServer::Loop {
 public:
  explicit Loop(HttpServerOptions options) : options_(std::move(options)), acceptor_(context_) { listen(); }

  void run() {
    {
      const std::lock_guard lock(clock_mutex_);
      if (pthread_getcpuclockid(pthread_self(), &clock_) == 0) has_clock_ = true;
    }
    asio::co_spawn(context_, accept(), asio::detached);
    context_.run();
    const std::lock_guard lock(clock_mutex_);
    processor_seconds_ = read_clock();
    has_clock_ = false;
  }

  void drain() {
    asio::post(context_, [this] {
      close_acceptor();
      for (HttpSession* session : sessions_) session->close_when_idle();
    });
  }

  void stop() {
    asio::post(context_, [this] {
      close_acceptor();
      for (HttpSession* session : sessions_) session->close_now();
    });
  }

  std::uint16_t port() const { return port_; }
  std::string address() const {
    const bool v6 = options_.host.find(':') != std::string::npos;
    return fmt::format(fmt::runtime(v6 ? "[{}]:{}" : "{}:{}"), options_.host, port_);
  }
  int connections() const { return connections_; }

  double processor_seconds() {
    const std::lock_guard lock(clock_mutex_);
    return has_clock_ ? read_clock() : processor_seconds_;
  }

 private:
  void listen() {
    boost::system::error_code error;
    Tcp::resolver resolver(context_);
    const auto found = resolver.resolve(options_.host, std::to_string(options_.port), Tcp::resolver::passive, error);
    if (error || found.empty()) reject_input("--host: '{}' is no address of this machine", options_.host);
    const Tcp::endpoint endpoint = found.begin()->endpoint();
    acceptor_.open(endpoint.protocol(), error);
    if (!error) acceptor_.set_option(Tcp::acceptor::reuse_address(true), error);
    if (!error) acceptor_.bind(endpoint, error);
    if (!error) acceptor_.listen(asio::socket_base::max_listen_connections, error);
    if (error) reject_input("--port: cannot listen at {}:{}: {}", options_.host, options_.port, error.message());
    port_ = acceptor_.local_endpoint().port();
  }

  void close_acceptor() {
    draining_ = true;
    boost::system::error_code ignored;
    acceptor_.close(ignored);
  }

  asio::awaitable<void> accept() {
    while (acceptor_.is_open()) {
      boost::system::error_code error;
      Tcp::socket socket = co_await acceptor_.async_accept(asio::redirect_error(asio::use_awaitable, error));
      if (!error) {
        asio::co_spawn(context_, serve(std::move(socket)), asio::detached);
      } else if (acceptor_.is_open()) {
        // No file descriptors, most likely: others must end first.
        asio::steady_timer pause(context_, std::chrono::milliseconds(50));
        co_await pause.async_wait(asio::redirect_error(asio::use_awaitable, error));
      }
    }
  }

  asio::awaitable<void> serve(Tcp::socket socket) {
    const auto session = std::make_shared<HttpSession>(std::move(socket), options_);
    sessions_.insert(session.get());
    const int count = ++connections_;
    try {
      if (draining_) {
        session->close_now();
      } else if (count > options_.limits.connections) {
        co_await session->turn_away();
      } else {
        co_await session->run();
      }
    } catch (const std::exception&) {
      session->close_now();  // one connection's failure is no other's
    }
    sessions_.erase(session.get());
    --connections_;
  }

  double read_clock() const {
    timespec time{};
    if (clock_gettime(clock_, &time) != 0) return 0;
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
  }

  HttpServerOptions options_;
  asio::io_context context_{1};
  Tcp::acceptor acceptor_;
  std::uint16_t port_ = 0;
  bool draining_ = false;
  std::unordered_set<HttpSession*> sessions_;
  std::atomic<int> connections_ = 0;
  std::mutex clock_mutex_;
  clockid_t clock_{};
  bool has_clock_ = false;
  double processor_seconds_ = 0;
};

HttpServer::HttpServer(HttpServerOptions options) : loop_(std::make_unique<Loop>(std::move(options))) {}
HttpServer::~HttpServer() = default;
std::uint16_t HttpServer::port() const { return loop_->port(); }
std::string HttpServer::address() const { return loop_->address(); }
void HttpServer::run() { loop_->run(); }
void HttpServer::drain() { loop_->drain(); }
void HttpServer::stop() { loop_->stop(); }
int HttpServer::connections() const { return loop_->connections(); }
double HttpServer::processor_seconds() const { return loop_->processor_seconds(); }

}  // namespace kvloom
