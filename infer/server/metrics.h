// What Prometheus is told.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "infer/server/engine_thread.h"
#include "infer/server/http_types.h"

namespace kvloom {

class ServerMetrics : public EngineObserver {
 public:
  ServerMetrics();
  ~ServerMetrics() override;
  ServerMetrics(const ServerMetrics&) = delete;
  ServerMetrics& operator=(const ServerMetrics&) = delete;

  void first_token(double seconds) override;
  void next_token(double seconds) override;
  void finished(const Event& last) override;
  void cancelled(std::size_t texts) override;
  // Called for every request of HTTP that is over.
  void answered(const HttpRecord& record);

  struct Now {
    EngineCounts counts;
    std::size_t texts = 0;  // under way
    int connections = 0;
    double io_seconds = 0;  // processor time of the I/O thread
  };
  // Prometheus's text format.
  std::string text(const Now& now);

 private:
  struct Series;
  std::unique_ptr<Series> series_;
};

}  // namespace kvloom
