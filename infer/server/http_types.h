// HTTP as the server's handlers see it: plain values, no sockets.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace kvloom {

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

struct HttpRequest {
  std::string id;  // the server's own, unique; what a client calls its request is never used as a key
  std::string method;
  std::string path;  // without what follows '?'
  HttpHeaders headers;
  std::string body;

  // Of any case; empty where it is not there.
  std::string_view header(std::string_view name) const;
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  HttpHeaders headers;  // further ones; bytes that could end a line are left out of values
};

// What one client may take of the server. A client that goes beyond is answered with 4xx, or its connection is closed.
struct HttpLimits {
  std::uint32_t header_bytes = 16 << 10;
  std::uint64_t body_bytes = std::uint64_t{16} << 20;
  int connections = 1024;
  std::size_t unsent_bytes = std::size_t{1} << 20;  // of a stream: a client that reads slower than that is dropped
  int send_buffer_bytes = 256 << 10;                // of the system, for each connection; 0: the system's choice
  std::chrono::milliseconds header_time{10'000};    // from a request's first byte to the end of its headers
  std::chrono::milliseconds body_time{60'000};
  std::chrono::milliseconds idle_time{75'000};   // between requests
  std::chrono::milliseconds write_time{30'000};  // in which the client must take what is being sent
};

// One request, when all is over, for the log.
struct HttpRecord {
  std::string id;
  std::string method;
  std::string path;
  int status = 0;  // 0: the client went before it was answered
  std::uint64_t sent_bytes = 0;
  double seconds = 0;
  std::string_view outcome;  // "done", or why it ended early: "client went", "client too slow", "server stopped"
};

}  // namespace kvloom
