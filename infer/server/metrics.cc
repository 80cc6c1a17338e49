#include "infer/server/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <array>
#include <mutex>

namespace kvloom {
namespace {

namespace prom = prometheus;
using Buckets = prom::Histogram::BucketBoundaries;

const Buckets kSeconds = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60};
const Buckets kPasses = {1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 12, 16, 32, 64};

const char* name_of(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kDeadline:
      return "deadline";
    default:
      return "failed";
  }
}

// Counts that the engine keeps itself only ever grow.
void raise(prom::Counter& counter, std::int64_t to) {
  const double more = static_cast<double>(to) - counter.Value();
  if (more > 0) counter.Increment(more);
}

}  // namespace

struct ServerMetrics::Series {
  prom::Registry registry;
  std::mutex mutex;  // of text()

  prom::Gauge& gauge(const char* name, const char* help, const prom::Labels& labels = {}) {
    return prom::BuildGauge().Name(name).Help(help).Register(registry).Add(labels);
  }
  prom::Counter& counter(const char* name, const char* help, const prom::Labels& labels = {}) {
    return prom::BuildCounter().Name(name).Help(help).Register(registry).Add(labels);
  }
  prom::Histogram& histogram(const char* name, const char* help, const Buckets& buckets) {
    return prom::BuildHistogram().Name(name).Help(help).Register(registry).Add({}, buckets);
  }

  prom::Gauge& waiting = gauge("kvloom_sequences_waiting", "Sequences that wait for pages or their turn");
  prom::Gauge& running = gauge("kvloom_sequences_running", "Sequences that are being computed");
  prom::Gauge& swapped = gauge("kvloom_sequences_swapped", "Sequences whose pages are in the host's memory");
  prom::Gauge& texts = gauge("kvloom_texts", "Texts under way, queued ones too");
  prom::Gauge& connections = gauge("kvloom_connections", "Open connections");
  prom::Counter& io = counter("kvloom_io_processor_seconds_total", "Processor time of the I/O thread");
  prom::Counter& steps = counter("kvloom_steps_total", "Steps of the engine");
  prom::Counter& tokens = counter("kvloom_generated_tokens_total", "Tokens generated");
  prom::Counter& preemptions = counter("kvloom_preemptions_total", "Sequences that had to give way");
  prom::Counter& queries = counter("kvloom_prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache");
  prom::Counter& hits = counter("kvloom_prefix_cache_hits_total", "Prompt tokens found in the prefix cache");
  prom::Counter& cancellations = counter("kvloom_cancellations_total", "Texts whose client went or was dropped");
  prom::Counter& capped = counter("kvloom_capped_prompts_total", "Prompts with tokens that --prefill-passes settled");
  prom::Histogram& first =
      histogram("kvloom_time_to_first_token_seconds", "From the request to its first token", kSeconds);
  prom::Histogram& between = histogram("kvloom_time_between_tokens_seconds", "Between a text's tokens", kSeconds);
  prom::Histogram& passes = histogram("kvloom_passes_per_token", "Prefill passes a token, in iterated layers", kPasses);
};

ServerMetrics::ServerMetrics() : series_(std::make_unique<Series>()) {}
ServerMetrics::~ServerMetrics() = default;

void ServerMetrics::first_token(double seconds) { series_->first.Observe(seconds); }
void ServerMetrics::next_token(double seconds) { series_->between.Observe(seconds); }
void ServerMetrics::cancelled(std::size_t texts) { series_->cancellations.Increment(static_cast<double>(texts)); }

void ServerMetrics::finished(const Event& last) {
  series_->counter("kvloom_texts_finished_total", "Texts that have ended", {{"reason", name_of(last.finish)}})
      .Increment();
  if (last.choice != 0) return;
  series_->passes.Observe(last.usage.passes_per_token);
  if (last.usage.capped) series_->capped.Increment();
}

void ServerMetrics::answered(const HttpRecord& record) {
  series_->counter("kvloom_http_requests_total", "Requests of HTTP", {{"status", std::to_string(record.status)}})
      .Increment();
}

std::string ServerMetrics::text(const Now& now) {
  const std::lock_guard lock(series_->mutex);
  Series& series = *series_;
  series.waiting.Set(static_cast<double>(now.counts.sequences.waiting));
  series.running.Set(static_cast<double>(now.counts.sequences.running));
  series.swapped.Set(static_cast<double>(now.counts.sequences.swapped));
  series.texts.Set(static_cast<double>(now.texts));
  series.connections.Set(now.connections);
  if (now.io_seconds > series.io.Value()) series.io.Increment(now.io_seconds - series.io.Value());
  raise(series.steps, now.counts.steps);
  raise(series.tokens, now.counts.generated_tokens);
  raise(series.preemptions, now.counts.sequences.preemptions);
  raise(series.queries, now.counts.sequences.prefix_queries);
  raise(series.hits, now.counts.sequences.prefix_hits);
  for (std::size_t group = 0; group < now.counts.pages.size(); ++group) {
    const PageCounts& pages = now.counts.pages[group];
    const std::array<std::pair<const char*, std::int64_t>, 3> states = {
        {{"free", pages.free}, {"cached", pages.cached}, {"held", pages.held}}};
    for (const auto& [state, count] : states) {
      series
          .gauge("kvloom_pages", "Pages of K and V, by group of sources",
                 {{"group", std::to_string(group)}, {"state", state}})
          .Set(static_cast<double>(count));
    }
  }
  return prom::TextSerializer().Serialize(series.registry.Collect());
}

}  // namespace kvloom
