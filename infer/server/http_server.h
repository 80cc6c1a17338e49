// HTTP/1.1 on one thread: connections, limits and time-outs. What is asked and answered is the handler's business.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "infer/server/exchange.h"
#include "infer/server/http_types.h"

namespace kvloom {

struct HttpServerOptions {
  std::string host = "127.0.0.1";
  std::uint16_t port = 0;  // 0: a free one
  HttpLimits limits;
  // Called on the server's thread, for each request. It must return at once, and answer now or later, from any thread.
  std::function<void(HttpRequest, std::shared_ptr<Exchange>)> handle;
  // What is answered where no handler is asked: a status of 4xx or 503, and why.
  std::function<HttpResponse(int status, const std::string& reason)> refuse;
  std::function<void(const HttpRecord&)> record;
};

class HttpServer {
 public:
  // Binds. Throws InputError for a host or port that cannot be had.
  explicit HttpServer(HttpServerOptions options);
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  std::uint16_t port() const;
  std::string address() const;  // "127.0.0.1:8000"

  // Serves until `drain` or `stop` was called and the last connection is closed.
  void run();
  // From any thread. No new connections; those that wait for a request are closed, the others after their answer.
  void drain();
  // From any thread. Closes everything now.
  void stop();
  int connections() const;
  // Processor time of the thread that runs, so far.
  double processor_seconds() const;

 private:
  class Loop;
  std::unique_ptr<Loop> loop_;
};

}  // namespace kvloom
