// An OpenAI-compatible server under the load that measure_arrivals gives an engine: the same moments, the same prompts
// of random ids, so that servers can be compared. Each request is a streamed POST /v1/completions on a connection of
// its own, at temperature 0, with ignore_eos (where the server knows it).
#pragma once

#include <cstdint>
#include <string>

#include "infer/load/arrivals.h"

namespace kvloom {

struct ServerAddress {
  std::string host;
  std::string port;
  std::string path;  // before /v1, without a slash at its end
};

// Of http://host[:port][/path][/v1][/]. Throws InputError for all else; https has to be ended by a proxy before.
ServerAddress parse_server_url(const std::string& url);

struct ServerLoad {
  ServerAddress server;
  std::string model;        // empty: the first that /v1/models names
  std::string api_key;      // sent as a bearer token; empty: none
  std::int64_t vocab = 0;   // ids of prompts are below
  double patience_s = 600;  // of silence, before a request counts as failed
  ArrivalLoad load;
};

struct ServerLoadResult {
  std::string model;
  ArrivalResult times;        // whole: of texts that came whole; passes_per_token is not known
  std::int64_t tokens = 0;    // generated, as the server counts them, else one an event
  std::int64_t failed = 0;    // requests
  std::string first_failure;  // what the first of them was answered
};

// Throws Error when the server cannot be reached or names no model.
ServerLoadResult measure_server(const ServerLoad& load);

}  // namespace kvloom
