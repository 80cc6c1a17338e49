#include "infer/load/serve_measurement.h"

#include <exception>
#include <limits>
#include <span>
#include <vector>

#include "core/kv_pages.h"
#include "core/shard.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

int replicas_of(const ServeLoad& load) { return load.leaders == nullptr ? 1 : load.leaders->size(); }

// Of `total` that are dealt out among the replicas, those of this one.
std::int64_t share_of(const ServeLoad& load, std::int64_t total) {
  return load.leaders == nullptr ? total : part_of(total, load.leaders->rank(), load.leaders->size()).size();
}

// Sequences of so many tokens that the pages hold.
std::int64_t largest_batch(const Engine& engine, std::int64_t positions) {
  const EngineOptions& options = engine.options();
  std::int64_t most = std::numeric_limits<std::int64_t>::max();
  const KvPages& pages = engine.pages();
  for (std::size_t group = 0; group < pages.groups().size(); ++group) {
    const std::int64_t each = pages_of_sequence(pages.groups()[group], options.page_size, positions,
                                                std::max(options.max_chunk, options.grid));
    most = std::min(most, pages.options().pages[group] / each);
  }
  return std::min(most, options.max_sequences);
}

// What a step reads of weights as they are packed, and of K and V as they are kept.
DecodeCost step_cost(const Engine& engine, const ServeLoad& load, std::int64_t sequences) {
  const InferenceModel& model = engine.model();
  const ModelConfig& config = model.config();
  DecodeCost cost = decode_cost(config, DType::kF32, sequences, load.prompt + 1, load.steps);
  const double row = static_cast<double>(kv_row_bytes(engine.options().kv_format, config.kv_heads, config.head_dim));
  cost.key_value_bytes *= row / static_cast<double>(config.kv_heads * config.head_dim * 4);
  const double untied = config.tied_embeddings ? 0.0 : static_cast<double>(model.embedding().bytes());
  cost.weight_bytes = static_cast<double>(model.bytes()) - untied;
  return cost;
}

// On every replica at one time: of all sequences together, and the slowest one's seconds.
BatchResult measure_on_replicas(Engine& engine, const ServeLoad& load, std::int64_t sequences) {
  const LoadShape shape{.prompt_tokens = load.prompt, .new_tokens = load.steps};
  if (load.leaders == nullptr) return measure_batch(engine, sequences, shape, load.whole);
  Communicator& leaders = *load.leaders;
  leaders.barrier();
  BatchResult result{.decode_steps = load.steps};
  std::exception_ptr fault;
  try {
    if (sequences > 0) result = measure_batch(engine, sequences, shape, load.whole);
  } catch (const Error&) {
    fault = std::current_exception();
  }
  std::vector<std::int64_t> sums = {fault == nullptr ? 0 : 1, result.sequences, result.preemptions};
  leaders.all_reduce(std::span(sums));
  if (fault != nullptr) std::rethrow_exception(fault);
  if (sums[0] > 0) fail("{} of {} replicas failed", sums[0], leaders.size());
  std::vector<double> most = {result.prefill_seconds, result.decode_seconds, result.total_seconds,
                              result.passes_per_token};
  leaders.all_reduce(std::span(most), Reduction::kMax);
  result.sequences = sums[1];
  result.preemptions = sums[2];
  result.prefill_seconds = most[0];
  result.decode_seconds = most[1];
  result.total_seconds = most[2];
  result.passes_per_token = most[3];
  return result;
}

}  // namespace

ServeMeasurement measure_serving(Engine& engine, const ServeLoad& load, std::int64_t sequences) {
  const ModelConfig& config = engine.model().config();
  ServeMeasurement result{.prompt = load.prompt};
  const std::int64_t largest = largest_batch(engine, load.prompt + load.steps);
  result.largest_batch = replicas_of(load) * largest;
  const std::int64_t own = sequences == 0 ? largest : share_of(load, sequences);
  for (int repetition = 0; repetition < load.repetitions; ++repetition) {
    const BatchResult one = measure_on_replicas(engine, load, own);
    if (repetition == 0) result.best = one;
    result.best.prefill_seconds = std::min(result.best.prefill_seconds, one.prefill_seconds);
    result.best.decode_seconds = std::min(result.best.decode_seconds, one.decode_seconds);
    result.best.total_seconds = std::min(result.best.total_seconds, one.total_seconds);
  }
  sequences = result.best.sequences;
  result.kv_bytes =
      static_cast<double>(sequences * kv_bytes(config, engine.options().kv_format, load.prompt + load.steps));
  result.step = step_cost(engine, load, sequences);
  const IterationPlan plan =
      make_iteration_plan(config.kv_map, {.without_gradient = 0, .with_gradient = 1}, PlanMode::kPrefill, load.prompt);
  const double one_pass =
      plan_flops(config, plan, load.prompt, 1).forward + head_flops(config, 1, PlanMode::kPrefill).forward;
  result.prefill_flops = static_cast<double>(sequences) * one_pass * result.best.passes_per_token;
  return result;
}

}  // namespace kvloom
