#include "launch/bench_serve.h"

#include <fmt/ostream.h>

#include <algorithm>
#include <limits>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "core/convert/model_source.h"
#include "core/cost.h"
#include "core/kv_pages.h"
#include "core/measured_rates.h"
#include "infer/load/load.h"
#include "kernels/error.h"
#include "launch/bench_arrivals.h"

namespace kvloom {
namespace {

using Json = nlohmann::ordered_json;

// Steps beyond the timed ones that a sequence may decode while the prompts of others are computed.
constexpr std::int64_t kSpareTokens = 64;

struct Ceilings {
  double memory;    // bytes per second
  double products;  // operations per second
};

struct Measurement {
  std::string map;
  BatchResult best;  // of all repetitions, each figure by itself
  std::int64_t largest_batch = 0;
  double kv_bytes = 0;  // of the sequences when they have decoded
  DecodeCost step;      // the mean of the timed ones
  double prefill_flops = 0;
  std::int64_t prompt = 0;

  double step_seconds() const { return best.decode_seconds / static_cast<double>(best.decode_steps); }
  double decode_rate() const { return static_cast<double>(best.sequences) / step_seconds(); }
  double prefill_rate() const { return static_cast<double>(best.sequences * prompt) / best.prefill_seconds; }
  double bound_seconds(const Ceilings& most) const {
    return std::max(step.bytes() / most.memory, step.flops / most.products);
  }
  const char* bound_by(const Ceilings& most) const {
    return step.bytes() / most.memory >= step.flops / most.products ? "memory" : "products";
  }
  double prefill_share(const Ceilings& most) const { return prefill_flops / best.prefill_seconds / most.products; }
  double whole_rate(std::int64_t steps) const {
    return static_cast<double>(best.sequences * steps) / best.total_seconds;
  }
};

// A model to measure, with the weights that a step reads.
struct Subject {
  std::string name;
  std::unique_ptr<ModelPart> part;  // null: one rank
  std::unique_ptr<InferenceModel> model;
  double weight_bytes() const {
    const double untied = model->config().tied_embeddings ? 0.0 : static_cast<double>(model->embedding().bytes());
    return static_cast<double>(model->bytes()) - untied;
  }
};

std::int64_t largest_batch_asked(const BenchServeRequest& request) {
  return std::max<std::int64_t>(1, *std::ranges::max_element(request.batches));
}

std::int64_t context_needed(const BenchServeRequest& request) {
  std::int64_t prompt = request.prompt;
  for (const std::int64_t length : request.first_token_prompts) prompt = std::max(prompt, length);
  // Prompts of a batch are computed one after the other, and those before decode meanwhile.
  const std::int64_t prefill_steps = largest_batch_asked(request) * (1 + request.prompt / 256);
  return prompt + request.steps + kSpareTokens + prefill_steps;
}

EngineOptions engine_options(const BenchServeRequest& request, const ModelConfig& config) {
  EngineOptions options = request.engine;
  options.prefix_cache = false;
  if (options.context == 0) options.context = std::min(config.context, context_needed(request));
  options.max_sequences = std::max(options.max_sequences, largest_batch_asked(request));
  if (options.kv_bytes == 0) {
    const std::int64_t rows = std::max(options.max_chunk, options.grid);
    options.kv_bytes =
        largest_batch_asked(request) * paged_bytes(config, options.kv_format, options.page_size, options.context, rows);
  }
  return options;
}

ModelConfig config_of(const BenchServeRequest& request, const std::string& map) {
  if (!request.checkpoint.empty()) return open_model_source(request.checkpoint).model;
  proto::ModelConfig message = request.model;
  message.set_kv_map(map);
  message.set_context(static_cast<std::uint32_t>(context_needed(request)));
  return ModelConfig::from_proto(message);
}

int replicas_of(const BenchServeRequest& request) { return request.ranks == nullptr ? 1 : request.ranks->replicas(); }

// Of `total` that are dealt out among the replicas, those of this one.
std::int64_t share_of(const BenchServeRequest& request, std::int64_t total) {
  return request.ranks == nullptr ? total : part_of(total, request.ranks->replica(), replicas_of(request)).size();
}

Subject make_subject(const BenchServeRequest& request, const std::string& map, Allocator& allocator) {
  std::unique_ptr<ModelPart> part;
  const auto shard_of = [&](const ModelConfig& config) {
    if (request.ranks == nullptr) return ModelShard::whole(config);
    part = request.ranks->part_of(config, request.format, allocator);
    return part->shard();
  };
  if (!request.checkpoint.empty()) {
    LoadedInferenceModel loaded = load_inference_model(request.checkpoint, request.format, allocator, shard_of);
    return {loaded.model->config().kv_map.explicit_form(), std::move(part), std::move(loaded.model)};
  }
  const ModelConfig config = config_of(request, map);
  const ModelShard shard = shard_of(config);
  Subject subject{map, std::move(part), std::make_unique<InferenceModel>(config, shard, request.format, allocator)};
  initialize(*subject.model, 1);
  return subject;
}

// Before any model is in memory.
Ceilings measured_ceilings(const BenchServeRequest& request, const ModelConfig& config) {
  constexpr std::int64_t kRows = 4096;
  CachingCpuAllocator allocator(BlockSizes::kClasses);
  return {.memory = measured_memory_rates(allocator).best,
          .products = measured_product_rate(config, kRows, request.format.compute, allocator)};
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
DecodeCost step_cost(const Subject& subject, const BenchServeRequest& request, std::int64_t sequences) {
  const ModelConfig& config = subject.model->config();
  DecodeCost cost = decode_cost(config, DType::kF32, sequences, request.prompt + 1, request.steps);
  const double row = static_cast<double>(kv_row_bytes(request.engine.kv_format, config.kv_heads, config.head_dim));
  cost.key_value_bytes *= row / static_cast<double>(config.kv_heads * config.head_dim * 4);
  cost.weight_bytes = subject.weight_bytes();
  return cost;
}

// On every replica at one time: of all sequences together, and the slowest one's seconds.
BatchResult measure_on_replicas(Engine& engine, const BenchServeRequest& request, std::int64_t sequences) {
  const LoadShape shape{.prompt_tokens = request.prompt, .new_tokens = request.steps};
  const WholeRun whole = request.whole ? WholeRun::kYes : WholeRun::kNo;
  if (replicas_of(request) == 1) return measure_batch(engine, sequences, shape, whole);
  Communicator& leaders = request.ranks->leaders();
  leaders.barrier();
  BatchResult result{.decode_steps = request.steps};
  std::exception_ptr fault;
  try {
    if (sequences > 0) result = measure_batch(engine, sequences, shape, whole);
  } catch (const Error&) {
    fault = std::current_exception();
  }
  std::vector<std::int64_t> sums = {fault == nullptr ? 0 : 1, result.sequences, result.preemptions};
  leaders.all_reduce(std::span(sums));
  if (fault != nullptr) std::rethrow_exception(fault);
  if (sums[0] > 0) fail("{} of {} replicas failed", sums[0], replicas_of(request));
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

Measurement measure(Engine& engine, const Subject& subject, const BenchServeRequest& request, std::int64_t sequences) {
  const ModelConfig& config = subject.model->config();
  Measurement result{.map = subject.name, .prompt = request.prompt};
  const std::int64_t largest = largest_batch(engine, request.prompt + request.steps);
  result.largest_batch = replicas_of(request) * largest;
  const std::int64_t own = sequences == 0 ? largest : share_of(request, sequences);
  for (int repetition = 0; repetition < request.repetitions; ++repetition) {
    const BatchResult one = measure_on_replicas(engine, request, own);
    if (repetition == 0) result.best = one;
    result.best.prefill_seconds = std::min(result.best.prefill_seconds, one.prefill_seconds);
    result.best.decode_seconds = std::min(result.best.decode_seconds, one.decode_seconds);
    result.best.total_seconds = std::min(result.best.total_seconds, one.total_seconds);
  }
  sequences = result.best.sequences;
  result.kv_bytes =
      static_cast<double>(sequences * kv_bytes(config, request.engine.kv_format, request.prompt + request.steps));
  result.step = step_cost(subject, request, sequences);
  const IterationPlan plan = make_iteration_plan(config.kv_map, {.without_gradient = 0, .with_gradient = 1},
                                                 PlanMode::kPrefill, request.prompt);
  const double one_pass =
      plan_flops(config, plan, request.prompt, 1).forward + head_flops(config, 1, PlanMode::kPrefill).forward;
  result.prefill_flops = static_cast<double>(sequences) * one_pass * result.best.passes_per_token;
  return result;
}

Json to_json(const Measurement& m, const Measurement& first, const Ceilings& most, const BenchServeRequest& request) {
  Json json = {{"map", m.map},
               {"sequences", m.best.sequences},
               {"largest_batch", m.largest_batch},
               {"passes_per_token", m.best.passes_per_token},
               {"prefill_tokens_per_second", m.prefill_rate()},
               {"prefill_ratio_to_products", m.prefill_share(most)},
               {"decode_tokens_per_second", m.decode_rate()},
               {"seconds_per_step", m.step_seconds()},
               {"weight_bytes_per_step", m.step.weight_bytes},
               {"key_value_bytes_per_step", m.step.key_value_bytes},
               {"flops_per_step", m.step.flops},
               {"bound_by", m.bound_by(most)},
               {"ratio_to_bound", m.bound_seconds(most) / m.step_seconds()},
               {"kv_bytes", m.kv_bytes},
               {"decode_relative", m.decode_rate() / first.decode_rate()},
               {"kv_relative", m.kv_bytes / static_cast<double>(m.best.sequences) /
                                   (first.kv_bytes / static_cast<double>(first.best.sequences))},
               {"preemptions", m.best.preemptions}};
  if (request.whole) json["whole_tokens_per_second"] = m.whole_rate(request.steps);
  return json;
}

// What has been measured so far, as it is printed.
class Results {
 public:
  Results(const BenchServeRequest& request, const Ceilings& most, std::ostream& out)
      : request_(request), most_(most), out_(out) {
    if (is_text()) print_head();
  }

  void add(const Measurement& m) {
    const Measurement& first = first_.try_emplace(request_.batches.size() > 1 ? m.best.sequences : 0, m).first->second;
    runs_.push_back(to_json(m, first, most_, request_));
    if (!is_text()) return;
    fmt::print(
        out_, "{:<18} {:>5} {:>7} {:>7.2f} {:>9.0f} {:>9.2f} {:>9.1f} {:>8.2f} {:>7.2f} {:>8} {:>7.2f} {:>8.1f}{}\n",
        m.map.substr(0, 18), m.best.sequences, m.largest_batch, m.best.passes_per_token, m.prefill_rate(),
        m.prefill_share(most_), m.decode_rate(), m.step_seconds() * 1e3, m.bound_seconds(most_) / m.step_seconds(),
        m.bound_by(most_), m.decode_rate() / first.decode_rate(), m.kv_bytes / 0x1p20,
        request_.whole ? fmt::format(" {:>8.1f}", m.whole_rate(request_.steps)) : std::string());
    out_.flush();
  }
  void add(const std::string& map, const FirstTokenResult& first) {
    first_tokens_.push_back({{"map", map},
                             {"prompt_tokens", first.prompt_tokens},
                             {"seconds", first.seconds},
                             {"passes_per_token", first.passes_per_token}});
    if (!is_text()) return;
    fmt::print(out_, "{:<18} first token of a prompt of {:>5}: {:>8.1f} ms, {:.2f} passes a token\n", map.substr(0, 18),
               first.prompt_tokens, first.seconds * 1e3, first.passes_per_token);
    out_.flush();
  }
  void add(const std::string& map, const ArrivalResult& result, const ArrivalLoad& load) {
    Json json = {{"map", map}, {"passes_per_token", result.passes_per_token}};
    json.update(json_of(result, load));
    arrivals_.push_back(std::move(json));
    if (is_text()) print_arrivals(out_, map.substr(0, 18), result, load);
  }
  void add_failure(const std::string& map, const std::string& reason) {
    ++failures_;
    runs_.push_back({{"map", map}, {"error", reason}});
    if (is_text()) fmt::print(out_, "{:<18} {}\n", map.substr(0, 18), reason);
    out_.flush();
  }
  void finish() const {
    if (request_.form == BenchForm::kJson && is_leader()) {
      out_ << Json{{"dtype", name_of(request_.format.compute)},
                   {"prompt_tokens", request_.prompt},
                   {"steps", request_.steps},
                   {"memory_bytes_per_second", most_.memory},
                   {"products_flops_per_second", most_.products},
                   {"runs", runs_},
                   {"first_tokens", first_tokens_},
                   {"arrivals", arrivals_}}
                  .dump(2)
           << '\n';
    }
    if (failures_ > 0) fail("bench serve: {} measurements could not be made", failures_);
  }

 private:
  bool is_leader() const { return request_.ranks == nullptr || request_.ranks->prints(); }
  bool is_text() const { return request_.form == BenchForm::kText && is_leader(); }

  void print_head() const {
    const char* weights =
        request_.format.weights == WeightFormat::kInt8 ? "int8" : name_of(request_.format.compute).data();
    fmt::print(
        out_,
        "prompts of {} tokens, then {} steps; hidden states {}, weights {} ({}), K/V {}; memory {:.1f} GB/s, matrix "
        "products {:.1f} GFLOP/s\n",
        request_.prompt, request_.steps, name_of(request_.format.compute), weights,
        cpu::packed_linear_kernel(request_.format.weights), name_of(request_.engine.kv_format), most_.memory / 1e9,
        most_.products / 1e9);
    fmt::print(out_, "{:<18} {:>5} {:>7} {:>7} {:>9} {:>9} {:>9} {:>8} {:>7} {:>8} {:>7} {:>8}{}\n", "", "", "largest",
               "passes", "prefill", "of", "decode", "ms a", "of", "bound", "decode", "KV",
               request_.whole ? "    whole" : "");
    fmt::print(out_, "{:<18} {:>5} {:>7} {:>7} {:>9} {:>9} {:>9} {:>8} {:>7} {:>8} {:>7} {:>8}{}\n", "map", "batch",
               "batch", "a token", "tokens/s", "products", "tokens/s", "step", "bound", "by", "rel.", "MiB",
               request_.whole ? " tokens/s" : "");
  }

  const BenchServeRequest& request_;
  const Ceilings& most_;
  std::ostream& out_;
  std::map<std::int64_t, Measurement> first_;  // by batch
  Json runs_ = Json::array();
  Json first_tokens_ = Json::array();
  Json arrivals_ = Json::array();
  int failures_ = 0;
};

// An engine for each measurement, on all ranks: what fails on one is named on rank 0, and the others go on with it.
void measure_subject(const BenchServeRequest& request, const Subject& subject, Results& results) {
  const EngineOptions options = engine_options(request, subject.model->config());
  const auto with_engine = [&](const std::function<void(Engine&)>& body) {
    const EngineRanks ranks = subject.part == nullptr ? EngineRanks{} : subject.part->ranks();
    run_engine(*subject.model, options, ranks, [&](Engine& engine) {
      try {
        body(engine);
      } catch (const Error& error) {
        results.add_failure(subject.name, error.what());
      }
    });
  };
  for (const std::int64_t sequences : request.batches) {
    with_engine([&](Engine& engine) { results.add(measure(engine, subject, request, sequences)); });
  }
  for (const std::int64_t prompt : request.first_token_prompts) {
    with_engine([&](Engine& engine) {
      FirstTokenResult best = measure_first_token(engine, prompt);
      for (int repetition = 1; repetition < request.repetitions; ++repetition) {
        best.seconds = std::min(best.seconds, measure_first_token(engine, prompt).seconds);
      }
      results.add(subject.name, best);
    });
  }
  if (request.arrivals.per_second <= 0) return;
  with_engine(
      [&](Engine& engine) { results.add(subject.name, measure_arrivals(engine, request.arrivals), request.arrivals); });
}

}  // namespace

void bench_serve(const BenchServeRequest& request, std::ostream& out) {
  if (request.batches.empty()) reject_input("no batch to measure");
  const std::vector<std::string> maps = request.checkpoint.empty() ? request.maps : std::vector<std::string>{""};
  if (maps.empty()) reject_input("no map to measure");
  if (request.arrivals.per_second > 0 && replicas_of(request) > 1) {
    reject_input("--rate: is measured on one replica; right is with --tp times --pp as many as the ranks");
  }
  // Refuses what is wrong before anything is timed.
  for (const std::string& map : maps) config_of(request, map);
  const Ceilings most = measured_ceilings(request, config_of(request, maps.front()));
  Results results(request, most, out);
  for (const std::string& map : maps) {
    CachingCpuAllocator allocator(BlockSizes::kClasses);
    measure_subject(request, make_subject(request, map, allocator), results);
  }
  results.finish();
}

}  // namespace kvloom
