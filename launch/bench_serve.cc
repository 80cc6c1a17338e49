#include "launch/bench_serve.h"

#include <fmt/ostream.h>

#include <algorithm>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "core/convert/model_source.h"
#include "core/kv_pages.h"
#include "core/measured_rates.h"
#include "infer/load/load.h"
#include "infer/load/serve_measurement.h"
#include "kernels/error.h"
#include "launch/bench_arrivals.h"

namespace kvloom {
namespace {

using Json = nlohmann::ordered_json;

// Steps beyond the timed ones that a sequence may decode while the prompts of others are computed.
constexpr std::int64_t kSpareTokens = 64;

// A model to measure, with the weights that a step reads.
struct Subject {
  std::string name;
  std::unique_ptr<ModelPart> part;  // null: one rank
  std::unique_ptr<InferenceModel> model;
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

ServeLoad load_of(const BenchServeRequest& request) {
  ServeLoad load{.prompt = request.prompt,
                 .steps = request.steps,
                 .repetitions = request.repetitions,
                 .whole = request.whole ? WholeRun::kYes : WholeRun::kNo};
  if (request.ranks != nullptr && request.ranks->replicas() > 1) load.leaders = &request.ranks->leaders();
  return load;
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
ServeCeilings measured_ceilings(const BenchServeRequest& request, const ModelConfig& config) {
  constexpr std::int64_t kRows = 4096;
  CachingCpuAllocator allocator(BlockSizes::kClasses);
  return {.memory = measured_memory_rates(allocator).best,
          .products = measured_product_rate(config, kRows, request.format.compute, allocator)};
}

// What has been measured so far, as it is printed.
class Results {
 public:
  Results(const BenchServeRequest& request, const ServeCeilings& most, std::ostream& out)
      : request_(request), most_(most), out_(out) {
    if (is_text()) print_head();
  }

  void add(const std::string& map, const ServeMeasurement& m) {
    const ServeMeasurement& first =
        first_.try_emplace(request_.batches.size() > 1 ? m.best.sequences : 0, m).first->second;
    runs_.push_back(to_json(map, m, first));
    if (!is_text()) return;
    fmt::print(
        out_, "{:<18} {:>5} {:>7} {:>7.2f} {:>9.0f} {:>9.2f} {:>9.1f} {:>8.2f} {:>7.2f} {:>8} {:>7.2f} {:>8.1f}{}\n",
        map.substr(0, 18), m.best.sequences, m.largest_batch, m.best.passes_per_token, m.prefill_rate(),
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
  Json to_json(const std::string& map, const ServeMeasurement& m, const ServeMeasurement& first) const {
    Json json = {{"map", map},
                 {"sequences", m.best.sequences},
                 {"largest_batch", m.largest_batch},
                 {"passes_per_token", m.best.passes_per_token},
                 {"prefill_tokens_per_second", m.prefill_rate()},
                 {"prefill_ratio_to_products", m.prefill_share(most_)},
                 {"decode_tokens_per_second", m.decode_rate()},
                 {"seconds_per_step", m.step_seconds()},
                 {"weight_bytes_per_step", m.step.weight_bytes},
                 {"key_value_bytes_per_step", m.step.key_value_bytes},
                 {"flops_per_step", m.step.flops},
                 {"bound_by", m.bound_by(most_)},
                 {"ratio_to_bound", m.bound_seconds(most_) / m.step_seconds()},
                 {"kv_bytes", m.kv_bytes},
                 {"decode_relative", m.decode_rate() / first.decode_rate()},
                 {"kv_relative", m.kv_bytes / static_cast<double>(m.best.sequences) /
                                     (first.kv_bytes / static_cast<double>(first.best.sequences))},
                 {"preemptions", m.best.preemptions}};
    if (request_.whole) json["whole_tokens_per_second"] = m.whole_rate(request_.steps);
    return json;
  }

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
  const ServeCeilings& most_;
  std::ostream& out_;
  std::map<std::int64_t, ServeMeasurement> first_;  // by batch
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
    with_engine(
        [&](Engine& engine) { results.add(subject.name, measure_serving(engine, load_of(request), sequences)); });
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
  const ServeCeilings most = measured_ceilings(request, config_of(request, maps.front()));
  Results results(request, most, out);
  for (const std::string& map : maps) {
    CachingCpuAllocator allocator(BlockSizes::kClasses);
    measure_subject(request, make_subject(request, map, allocator), results);
  }
  results.finish();
}

}  // namespace kvloom
