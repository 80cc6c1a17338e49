// What the server answers to which path.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "infer/server/engine_thread.h"
#include "infer/server/exchange.h"
#include "infer/server/server.h"
#include "infer/server/worker.h"

namespace kvloom {

class Api {
 public:
  using Answer = std::shared_ptr<Exchange>;

  // All that is referred to outlives it. `metrics_text`: for /metrics.
  Api(const ServerOptions& options, const PromptMaker& prompts, const Engine& engine, EngineThread& engine_thread,
      Worker& worker, std::function<std::string()> metrics_text);

  // On the I/O thread: answers what costs nothing, and leaves the rest to the worker.
  void handle(HttpRequest request, Answer answer);

 private:
  // What a path does. `work` runs on the worker.
  struct Route {
    std::string method;  // "GET" stands for HEAD, too
    bool is_protected = true;
    std::function<HttpResponse()> now;
    std::function<void(const HttpRequest&, const Answer&)> work;
  };

  void check(const HttpRequest& request, const Route& route) const;
  const Route& route_of(const HttpRequest& request) const;
  void answer_by_work(const Route& route, HttpRequest request, Answer answer);

  void complete(const HttpRequest& request, const Answer& answer) const;
  void chat(const HttpRequest& request, const Answer& answer) const;
  void tokenize(const HttpRequest& request, const Answer& answer) const;
  void detokenize(const HttpRequest& request, const Answer& answer) const;
  void start(JobOptions job, const Answer& answer) const;
  void check_model(const std::string& name) const;
  JobOptions job_of(Endpoint endpoint, const HttpRequest& request, CommonRequest common) const;
  void check_length(const JobOptions& job) const;
  nlohmann::ordered_json models_json() const;
  HttpResponse health() const;

  const ServerOptions& options_;
  const PromptMaker& prompts_;
  const std::int64_t context_;
  const std::int64_t vocab_;
  EngineThread& engine_;
  Worker& worker_;
  const std::int64_t created_;
  std::map<std::string, Route> routes_;
};

}  // namespace kvloom
