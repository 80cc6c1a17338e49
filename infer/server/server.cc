#include "infer/server/server.h"

#include <fmt/format.h>

#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

#include "infer/server/api.h"
#include "infer/server/http_server.h"
#include "infer/server/metrics.h"
#include "infer/server/openai_error.h"
#include "kernels/error.h"

namespace kvloom {

bool equal_in_constant_time(std::string_view given, std::string_view wanted) {
  unsigned differ = given.size() == wanted.size() ? 0 : 1;
  for (std::size_t i = 0; i < given.size(); ++i) {
    const char right = wanted.empty() ? '\0' : wanted[i % wanted.size()];
    differ |= static_cast<unsigned>(static_cast<unsigned char>(given[i]) ^ static_cast<unsigned char>(right));
  }
  return differ == 0;
}

class Server::Parts {
 public:
  Parts(Engine& engine, ModelTexts texts, ServerOptions options)
      : options_(checked(std::move(options))),
        prompts_(std::move(texts)),
        http_(http_options()),
        engine_(engine, options_.most_texts, &metrics_),
        worker_(options_.most_texts),
        api_(options_, prompts_, engine, engine_, worker_, [this] { return metrics_text(); }) {
    engine_.when_failed([this](const std::string& message) {
      options_.log("the engine has failed: " + message);
      // Clients hear of it before their connections are closed.
      drain(kFailureGrace);
    });
  }

  ~Parts() {
    worker_.stop();
    engine_.stop("the server has stopped");
    end_grace();
  }

  void run() {
    http_.run();
    worker_.stop();
    engine_.stop("the server has stopped");
    end_grace();
    if (!engine_.failure().empty()) fail("the engine has failed: {}", engine_.failure());
  }

  // What is under way may end by itself; then the rest is told, and what does not even take that is cut off.
  void drain(double grace_seconds) {
    const std::lock_guard lock(grace_mutex_);
    if (grace_.joinable()) return;
    engine_.drain();
    http_.drain();
    grace_ = std::thread([this, grace_seconds] {
      if (wait(grace_seconds)) return;
      if (engine_.failure().empty()) engine_.stop("the server is stopping");
      if (wait(kLastWords)) return;
      http_.stop();
    });
  }

  std::vector<std::string> state() const {
    const EngineCounts counts = engine_.counts();
    std::vector<std::string> lines = {
        fmt::format("state: {} connections, {} texts under way, {} waiting, {} running, {} swapped{}",
                    http_.connections(), engine_.texts(), counts.sequences.waiting, counts.sequences.running,
                    counts.sequences.swapped, engine_.is_draining() ? ", draining" : ""),
        fmt::format("state: {} steps, {} tokens generated, {} preemptions, prefix cache {} of {} tokens", counts.steps,
                    counts.generated_tokens, counts.sequences.preemptions, counts.sequences.prefix_hits,
                    counts.sequences.prefix_queries)};
    for (std::size_t group = 0; group < counts.pages.size(); ++group) {
      const PageCounts& pages = counts.pages[group];
      lines.push_back(fmt::format("state: pages of group {}: {} held, {} cached, {} free, {} in all", group, pages.held,
                                  pages.cached, pages.free, pages.total));
    }
    return lines;
  }

  HttpServer& http() { return http_; }

 private:
  static constexpr double kFailureGrace = 1;
  static constexpr double kLastWords = 1;

  static ServerOptions checked(ServerOptions options) {
    if (options.model_name.empty()) reject_input("--served-model-name: is empty; right is a name for clients to use");
    if (options.most_texts < 1) reject_input("--max-requests: 0; right is 1 or more");
    if (!(options.request_seconds > 0)) reject_input("--timeout: {}; right is above 0", options.request_seconds);
    return options;
  }

  HttpServerOptions http_options() {
    return {.host = options_.host,
            .port = options_.port,
            .limits = options_.http,
            .handle = [this](HttpRequest request,
                             std::shared_ptr<Exchange> answer) { api_.handle(std::move(request), std::move(answer)); },
            .refuse =
                [](int status, const std::string& reason) {
                  return error_response({status, reason});
                },
            .record =
                [this](const HttpRecord& record) {
                  metrics_.answered(record);
                  options_.log(fmt::format("{} {} {} {} {} bytes {:.3f} s: {}", record.id, record.method,
                                           one_line(record.path.substr(0, 200)), record.status, record.sent_bytes,
                                           record.seconds, record.outcome));
                }};
  }

  std::string metrics_text() {
    return metrics_.text({.counts = engine_.counts(),
                          .texts = engine_.texts(),
                          .connections = http_.connections(),
                          .io_seconds = http_.processor_seconds()});
  }

  // True: all is over already.
  bool wait(double seconds) {
    std::unique_lock lock(over_mutex_);
    return over_changed_.wait_for(lock, std::chrono::duration<double>(seconds), [&] { return over_; });
  }

  void end_grace() {
    {
      const std::lock_guard lock(over_mutex_);
      over_ = true;
    }
    over_changed_.notify_all();
    const std::lock_guard lock(grace_mutex_);
    if (grace_.joinable()) grace_.join();
  }

  const ServerOptions options_;
  const PromptMaker prompts_;
  ServerMetrics metrics_;
  HttpServer http_;
  EngineThread engine_;
  Worker worker_;
  Api api_;
  std::mutex over_mutex_;
  std::condition_variable over_changed_;
  bool over_ = false;
  std::mutex grace_mutex_;
  std::thread grace_;
};

Server::Server(Engine& engine, ModelTexts texts, ServerOptions options)
    : parts_(std::make_unique<Parts>(engine, std::move(texts), std::move(options))) {}
Server::~Server() = default;
std::uint16_t Server::port() const { return parts_->http().port(); }
std::string Server::address() const { return parts_->http().address(); }
void Server::run() { parts_->run(); }
void Server::drain(double grace_seconds) { parts_->drain(grace_seconds); }
std::vector<std::string> Server::state() const { return parts_->state(); }

}  // namespace kvloom
