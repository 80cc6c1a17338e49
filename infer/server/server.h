// The server: HTTP on one thread, the engine on another, and one that reads requests and makes prompts of them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "infer/engine/engine.h"
#include "infer/server/http_types.h"
#include "infer/server/openai_request.h"
#include "infer/server/prompts.h"

namespace kvloom {

struct ServerOptions {
  std::string host = "127.0.0.1";
  std::uint16_t port = 8000;  // 0: a free one
  std::string model_name;     // what clients call the model
  std::string api_key;        // what they must show for all but /, /health, /version and /metrics; empty: nothing
  SamplingSettings sampling;  // where a request does not say
  HttpLimits http;
  RequestLimits requests;
  std::size_t most_texts = 1024;  // under way at one time, running or waiting
  double request_seconds = 600;   // a request that takes longer ends with an error
  // A line for the log. From several threads.
  std::function<void(const std::string&)> log = [](const std::string&) {};
  bool log_prompts = false;
};

class Server {
 public:
  // `engine` and the tokenizer outlive it; nobody else uses the engine until `run` returns. Throws InputError for what
  // makes no sense, and for an address that cannot be had.
  Server(Engine& engine, ModelTexts texts, ServerOptions options);
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  std::uint16_t port() const;
  std::string address() const;

  // Serves until it was told to stop, or the engine fails: then throws Error.
  void run();
  // From any thread. Nothing new is accepted; what runs may go on for so long, and is then ended with an error.
  void drain(double grace_seconds);
  // From any thread. What it is doing, a line each.
  std::vector<std::string> state() const;

 private:
  class Parts;
  std::unique_ptr<Parts> parts_;
};

// Whether both are the same, in a time that depends on the length of `given` alone.
bool equal_in_constant_time(std::string_view given, std::string_view wanted);

}  // namespace kvloom
