#include <fmt/format.h>
#include <fmt/ranges.h>

#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>

#include "core/config.h"
#include "kernels/error.h"
#include "launch/schedule_drawing.h"
#include "launch/terminal.h"
#include "launch/verbs.h"
#include "parallel/placement.h"

namespace kvloom {
namespace {

constexpr int kGanttColumns = 100;
constexpr int kMostRanks = 4096;

struct Options {
  std::string config;
  std::vector<std::string> overrides;
  std::optional<int> tensor;
  std::optional<int> pipeline;
  std::optional<int> data;
  int stages_per_rank = 1;
  std::vector<int> boundaries;
  std::string placement = "auto";
  std::string schedule = "1f1b";
  bool sequence_parallel = false;
  double link_gbps = 200;
  double device_tflops = 100;
  double memory_gib = 0;
  bool json = false;
  std::string svg;
};

struct Setting {
  StepShape shape;
  Speeds speeds;
  PlacementLimits limits;
  int data_ranks;
};

int micro_batches_of(const proto::TrainConfig& train, int data_ranks) {
  const std::int64_t together = std::int64_t{train.micro_batch()} * data_ranks;
  if (train.global_batch() % together != 0) {
    reject_input("train.global_batch: {} is no multiple of train.micro_batch {} x {} data ranks", train.global_batch(),
                 train.micro_batch(), data_ranks);
  }
  return static_cast<int>(train.global_batch() / together);
}

Setting setting_of(const Options& options) {
  const proto::RunConfig config = load_run_config(options.config, options.overrides);
  const int data = options.data.value_or(std::max(1, static_cast<int>(config.mesh().data())));
  Setting setting{
      .shape = {.model = ModelConfig::from_proto(config.model()),
                .passes = passes_of(config.passes()),
                .micro_batches = micro_batches_of(config.train(), data),
                .sequences = config.train().micro_batch(),
                .dtype = config.train().precision() == proto::TrainConfig::BF16 ? DType::kBF16 : DType::kF32,
                .recompute =
                    config.train().recompute() == proto::TrainConfig::FULL ? Recompute::kFull : Recompute::kNone,
                .tensor_ranks = options.tensor.value_or(static_cast<int>(config.mesh().tensor())),
                .sequence_parallel = options.sequence_parallel ? SequenceParallel::kYes : SequenceParallel::kNo,
                .policy =
                    options.schedule == "gpipe" ? SchedulePolicy::kGPipe : SchedulePolicy::kOneForwardOneBackward},
      .speeds = {.flops_per_second = options.device_tflops * 1e12,
                 .link_bytes_per_second = options.link_gbps * 1e9 / 8},
      .limits = {.ranks = options.pipeline.value_or(static_cast<int>(config.mesh().pipeline())),
                 .stages_per_rank = options.stages_per_rank,
                 .memory_bytes = static_cast<std::int64_t>(options.memory_gib * 0x1p30)},
      .data_ranks = data};
  const std::int64_t rows = setting.shape.sequences * setting.shape.model.context;
  if (options.sequence_parallel && rows % setting.shape.tensor_ranks != 0) {
    reject_input("--sequence-parallel: {} rows of a micro-batch do not divide among {} tensor ranks", rows,
                 setting.shape.tensor_ranks);
  }
  return setting;
}

StageLayout given_layout(const Options& options, const Setting& setting) {
  std::vector<int> boundaries = options.boundaries;
  const auto layers = static_cast<int>(setting.shape.model.layers);
  // The end may be left out.
  if (boundaries.back() < layers) boundaries.push_back(layers);
  const StageLayout layout(setting.limits.ranks, boundaries);
  const int stages = setting.limits.ranks * setting.limits.stages_per_rank;
  if (layout.stages() != stages || layout.layers() != layers) {
    reject_input("--boundaries {}: {} stages up to layer {}; right are {} ({} pipeline ranks x {}) up to layer {}",
                 fmt::join(options.boundaries, ","), layout.stages(), layout.layers(), stages, setting.limits.ranks,
                 setting.limits.stages_per_rank, layers);
  }
  return layout;
}

StageLayout even_layout(const Setting& setting) {
  return StageLayout::even(static_cast<int>(setting.shape.model.layers), setting.limits.ranks,
                           setting.limits.stages_per_rank);
}

PredictedStep chosen_step(const Options& options, const Setting& setting, const StepCounter& counter) {
  if (!options.boundaries.empty()) return predict_step(counter, given_layout(options, setting), setting.speeds);
  if (options.placement == "even") return predict_step(counter, even_layout(setting), setting.speeds);
  return place_stages(counter, setting.speeds, setting.limits);
}

// What the text and the JSON say of one pipeline rank.
struct RankSummary {
  std::vector<std::string> layers;  // "0-5", a stage each
  std::vector<int> owned;           // KV sources
  std::set<int> received;           // KV sources
  double compute_share = 0;         // of all ranks' computing
};

RankSummary summarize(const PredictedStep& step, const KvMap& map, int rank) {
  RankSummary summary;
  for (int stage = rank; stage < step.layout.stages(); stage += step.layout.ranks()) {
    const int first = step.layout.first_layer(stage);
    const int last = step.layout.end_layer(stage) - 1;
    summary.layers.push_back(first == last ? fmt::format("{}", first) : fmt::format("{}-{}", first, last));
    for (int layer = first; layer <= last; ++layer) {
      if (map.is_kv_layer(layer)) summary.owned.push_back(layer);
    }
  }
  for (const Edge& edge : step.chain.edges) {
    if (edge.kind == EdgeKind::kKeyValue && edge.to_rank == rank) summary.received.insert(edge.source);
  }
  double all = 0;
  for (const double busy : step.times.busy) all += busy;
  summary.compute_share = all > 0 ? step.times.busy[static_cast<std::size_t>(rank)] / all : 0;
  return summary;
}

struct Link {
  int from;
  int to;
  LinkBytes bytes;
};

std::vector<Link> links_of(const PredictedStep& step) {
  std::vector<Link> links;
  for (int from = 0; from < step.layout.ranks(); ++from) {
    for (int to = 0; to < step.layout.ranks(); ++to) {
      const LinkBytes bytes = link_bytes(step.chain, step.costs, from, to);
      if (bytes.messages > 0) links.push_back({from, to, bytes});
    }
  }
  return links;
}

template <typename Numbers>
std::string list_or_dash(const Numbers& numbers) {
  return std::begin(numbers) == std::end(numbers) ? "-" : fmt::format("{}", fmt::join(numbers, ","));
}

std::string gib(std::int64_t bytes) { return format_bytes(static_cast<double>(bytes)); }

void print_heading(const Setting& setting, const PredictedStep& step, const Options& options) {
  const StepShape& shape = setting.shape;
  fmt::print("{} layers, {} of them KV layers, over {} data x {} pipeline x {} tensor ranks\n", shape.model.layers,
             shape.model.kv_map.kv_layers().size(), setting.data_ranks, setting.limits.ranks, shape.tensor_ranks);
  fmt::print("{} micro-batches of {} x {} tokens, {}, m = {}, b = {}, schedule {}\n", shape.micro_batches,
             shape.sequences, shape.model.context, name_of(shape.dtype), shape.passes.without_gradient,
             shape.passes.with_gradient, options.schedule);
  fmt::print("boundaries {} ({})\n\n", fmt::join(step.layout.boundaries(), ","),
             options.boundaries.empty() ? options.placement : "given");
}

void print_ranks(const Setting& setting, const PredictedStep& step) {
  fmt::print("{:>4}  {:<14} {:<12} {:<14} {:>8} {:>12} {:>12} {:>12} {:>12}\n", "rank", "layers", "KV sources",
             "K/V received", "compute", "memory", "weights", "activations", "K/V");
  for (int rank = 0; rank < step.layout.ranks(); ++rank) {
    const RankSummary summary = summarize(step, setting.shape.model.kv_map, rank);
    const RankMemory& memory = step.memory[static_cast<std::size_t>(rank)];
    fmt::print("{:>4}  {:<14} {:<12} {:<14} {:>7.1f}% {:>12} {:>12} {:>12} {:>12}\n", rank,
               list_or_dash(summary.layers), list_or_dash(summary.owned), list_or_dash(summary.received),
               100 * summary.compute_share, gib(memory.total()), gib(memory.weights), gib(memory.activations),
               gib(memory.key_values));
  }
}

void print_links(const PredictedStep& step) {
  const std::vector<Link> links = links_of(step);
  if (links.empty()) return;
  fmt::print("\nBytes between ranks, per micro-batch and tensor rank:\n");
  fmt::print("{:>10} {:>16} {:>16} {:>16} {:>16} {:>9}\n", "from>to", "hidden", "their gradient", "K/V", "dK/dV",
             "messages");
  for (const Link& link : links) {
    fmt::print("{:>10} {:>16} {:>16} {:>16} {:>16} {:>9}\n", fmt::format("{}>{}", link.from, link.to),
               link.bytes.hidden, link.bytes.hidden_gradient, link.bytes.key_value, link.bytes.key_value_gradient,
               link.bytes.messages);
  }
}

void print_prediction(const PredictedStep& step, const PredictedStep& even) {
  fmt::print(
      "\nPredicted: {:.4g} s a step, idle {:.2f}% of all ranks' time; most chunks kept at one time, by rank: {}\n",
      step.times.makespan, 100 * step.times.idle_share(), fmt::join(step.times.peak_kept_chunks, ","));
  fmt::print("Even boundaries {}: {:.4g} s ({:.3f} times), idle {:.2f}%, {} at most ({} here)\n\n",
             fmt::join(even.layout.boundaries(), ","), even.times.makespan, even.times.makespan / step.times.makespan,
             100 * even.times.idle_share(), gib(even.most_memory()), gib(step.most_memory()));
}

nlohmann::ordered_json to_json(const LinkBytes& bytes, std::int64_t times) {
  return {{"hidden", times * bytes.hidden},
          {"hidden_gradient", times * bytes.hidden_gradient},
          {"key_value", times * bytes.key_value},
          {"key_value_gradient", times * bytes.key_value_gradient},
          {"messages", times * bytes.messages}};
}

nlohmann::ordered_json prediction_json(const PredictedStep& step) {
  return {{"boundaries", step.layout.boundaries()},
          {"seconds", step.times.makespan},
          {"idle_share", step.times.idle_share()},
          {"most_memory", step.most_memory()}};
}

nlohmann::ordered_json ranks_json(const Setting& setting, const PredictedStep& step) {
  nlohmann::ordered_json ranks = nlohmann::ordered_json::array();
  for (int rank = 0; rank < step.layout.ranks(); ++rank) {
    const auto at = static_cast<std::size_t>(rank);
    const RankSummary summary = summarize(step, setting.shape.model.kv_map, rank);
    ranks.push_back({{"layers", summary.layers},
                     {"sources", summary.owned},
                     {"received_sources", summary.received},
                     {"compute_share", summary.compute_share},
                     {"busy_seconds", step.times.busy[at]},
                     {"peak_kept_chunks", step.times.peak_kept_chunks[at]},
                     {"memory",
                      {{"weights", step.memory[at].weights},
                       {"activations", step.memory[at].activations},
                       {"key_values", step.memory[at].key_values}}}});
  }
  return ranks;
}

void print_json(const Setting& setting, const PredictedStep& step, const PredictedStep& even) {
  nlohmann::ordered_json links = nlohmann::ordered_json::array();
  for (const Link& link : links_of(step)) {
    links.push_back({{"from", link.from},
                     {"to", link.to},
                     {"per_micro_batch", to_json(link.bytes, 1)},
                     {"per_step", to_json(link.bytes, setting.shape.micro_batches)}});
  }
  nlohmann::ordered_json all = prediction_json(step);
  all["mesh"] = {
      {"data", setting.data_ranks}, {"pipeline", setting.limits.ranks}, {"tensor", setting.shape.tensor_ranks}};
  all["micro_batches"] = setting.shape.micro_batches;
  all["ranks"] = ranks_json(setting, step);
  all["links"] = links;
  all["even"] = prediction_json(even);
  fmt::print("{}\n", all.dump(2));
}

void write_svg(const std::string& path, const PredictedStep& step) {
  std::ofstream file(path);
  file << svg_gantt(step.chain, step.times);
  file.close();
  if (!file) fail("cannot write {}", path);
}

void plan(const Options& options) {
  const Setting setting = setting_of(options);
  const StepCounter counter(setting.shape);
  const PredictedStep step = chosen_step(options, setting, counter);
  check_schedule(step.chain, setting.shape.micro_batches, setting.shape.policy, step.schedule);
  const PredictedStep even = predict_step(counter, even_layout(setting), setting.speeds);
  if (!options.svg.empty()) write_svg(options.svg, step);
  if (options.json) return print_json(setting, step, even);
  print_heading(setting, step, options);
  print_ranks(setting, step);
  print_links(step);
  print_prediction(step, even);
  fmt::print("{}", text_gantt(step.times, kGanttColumns));
}

}  // namespace

void add_plan(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* verb =
      app.add_subcommand("plan", "Show who would hold which layers, send what and wait when; runs nothing");
  const auto ranks = CLI::Range(1, kMostRanks);
  verb->add_option("--config", options->config, "Run config, .pbtxt (launch/recipes has some)")->required();
  verb->add_option("--set", options->overrides, "Override a field: --set train.micro_batch=2")
      ->type_name("FIELD=VALUE");
  verb->add_option("--tp", options->tensor, "Tensor ranks; default mesh.tensor")->check(ranks);
  verb->add_option("--pp", options->pipeline, "Pipeline ranks; default mesh.pipeline")->check(ranks);
  verb->add_option("--dp", options->data, "Data ranks; default mesh.data, or 1")->check(ranks);
  verb->add_option("--virtual", options->stages_per_rank, "Stages a pipeline rank (interleaved schedule)")
      ->check(CLI::Range(1, kMostRanks))
      ->capture_default_str();
  auto* boundaries =
      verb->add_option("--boundaries", options->boundaries, "First layer of each stage: 0,6,12")->delimiter(',');
  verb->add_option("--placement", options->placement, "auto: the fastest by prediction; even: equal numbers of layers")
      ->check(CLI::IsMember({"auto", "even"}))
      ->capture_default_str()
      ->excludes(boundaries);
  verb->add_option("--schedule", options->schedule, "1f1b or gpipe")
      ->check(CLI::IsMember({"1f1b", "gpipe"}))
      ->capture_default_str();
  verb->add_flag("--sequence-parallel", options->sequence_parallel, "Tensor ranks share the rows between regions");
  verb->add_option("--link-gbps", options->link_gbps,
                   "Gigabits a second between two ranks, one way; 0: messages take no time")
      ->check(CLI::Range(0.0, 1e9))
      ->capture_default_str();
  verb->add_option("--device-tflops", options->device_tflops, "What a rank reaches, 10^12 operations a second")
      ->check(CLI::Range(1e-6, 1e9))
      ->capture_default_str();
  verb->add_option("--memory-gib", options->memory_gib, "Memory of a rank, for placement auto; 0: any")
      ->check(CLI::Range(0.0, 1e9))
      ->capture_default_str();
  verb->add_flag("--json", options->json, "Print JSON");
  verb->add_option("--svg", options->svg, "Also draw the schedule into this file");
  verb->footer(
      "A schedule's line has a column for each hundredth of the step, with the micro-batch that computes there.\n"
      "Example: kvloom plan --config launch/recipes/tiny.pbtxt --pp 4 --set train.micro_batch=1\n"
      "Example: kvloom plan --config launch/recipes/tiny.pbtxt --pp 2 --tp 2 --boundaries 0,5 --link-gbps 25\n"
      "Example: kvloom plan --config launch/recipes/tiny.pbtxt --pp 2 --virtual 2 --svg schedule.svg");
  verb->callback([options] { plan(*options); });
}

}  // namespace kvloom
