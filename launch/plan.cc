#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "core/config.h"
#include "core/file.h"
#include "core/quantity_text.h"
#include "core/same_file.h"
#include "kernels/error.h"
#include "launch/at_least.h"
#include "launch/engine_options.h"
#include "launch/mesh_options.h"
#include "launch/plan_report.h"
#include "launch/ranks.h"
#include "launch/serving_report.h"
#include "launch/verbs.h"
#include "parallel/device_kind.h"
#include "parallel/schedule_drawing.h"
#include "train/mesh_config.h"
#include "train/serving_config.h"

namespace kvloom {
namespace {

struct Options {
  std::string config;
  std::vector<std::string> overrides;
  MeshOptions mesh;
  bool json = false;
  std::string svg;
  // With --serve.
  bool serve = false;
  std::vector<std::int64_t> batches = {1, 8, 32, 128};
  std::int64_t prompt = 512;
  double passes_per_token = 4;
  std::string kv_memory;
};

const char* placement_of(const proto::MeshConfig& mesh) {
  if (!mesh.boundaries().empty()) return "given";
  return mesh.placement() == proto::MeshConfig::EVEN ? "even" : "auto";
}

void plan(const Options& options) {
  if (is_same_file(options.svg, options.config)) reject_input("--svg: '{}' is the config; name another", options.svg);
  const proto::RunConfig config = load_run_config(options.config, options.mesh.after(options.overrides));
  const int data_ranks = std::max(1, static_cast<int>(config.mesh().data()));
  const StepCounter counter(step_shape_of(config, data_ranks));
  const PredictedStep step = plan_step(config, counter);
  check_schedule(step.chain, counter.shape().micro_batches, counter.shape().policy, step.schedule);
  const PredictedStep even = predict_step(counter, even_layout_of(config), speeds_of(config));
  if (!options.svg.empty()) write_file_atomically(options.svg, svg_gantt(step.chain, step.times));
  const PlanReport report{.shape = counter.shape(),
                          .data_ranks = data_ranks,
                          .placement = placement_of(config.mesh()),
                          .step = step,
                          .even = even};
  fmt::print("{}", options.json ? plan_json(report) : plan_text(report));
}

// What is left beside the weights of the fullest stage, or 1 GiB where the memory is not known.
std::int64_t kv_memory_of(const Options& options, const ServingReport& report, std::int64_t memory) {
  if (!options.kv_memory.empty()) return parse_bytes(options.kv_memory, "--kv-memory");
  if (memory == 0) return std::int64_t{1} << 30;
  std::int64_t weights = 0;
  for (const ServedStage& stage : served_stages(report.shape, report.boundaries)) {
    weights = std::max(weights, stage.weight_bytes);
  }
  if (weights < memory) return memory - weights;
  reject_input("plan: a rank's weights take {} of its memory of {}; right are more ranks",
               format_bytes(static_cast<double>(weights)), format_bytes(static_cast<double>(memory)));
}

void plan_serving(const Options& options) {
  const proto::RunConfig config = load_run_config(options.config, options.mesh.after(options.overrides));
  if (!options.svg.empty()) reject_input("--svg: draws a training step; right is without --serve");
  ServingReport report{.shape = serving_shape_of(config), .speeds = serving_speeds_of(config)};
  report.shape.rows_ahead = EngineOptions().max_chunk;
  report.placement = placement_of(config.mesh());
  report.boundaries = serving_boundaries_of(config, report.shape);
  report.batches = options.batches;
  report.prompt = std::min(options.prompt, report.shape.context);
  report.passes_per_token = options.passes_per_token;
  report.kv_bytes = kv_memory_of(options, report, placement_limits_of(config.mesh()).memory_bytes);
  fmt::print("{}", options.json ? serving_json(report) : serving_text(report));
}

void add_serving_options(CLI::App& verb, Options& options) {
  constexpr const char* kGroup = "With --serve";
  CLI::Option* serve =
      verb.add_flag("--serve", options.serve, "Of the inference engine instead of training")->group(kGroup);
  verb.add_option("--batch", options.batches, "Sequences that are decoded together")
      ->check(at_least(1))
      ->capture_default_str()
      ->needs(serve)
      ->group(kGroup);
  verb.add_option("--prompt-tokens", options.prompt, "Of the prompt whose first token is waited for")
      ->check(at_least(1))
      ->capture_default_str()
      ->needs(serve)
      ->group(kGroup);
  verb.add_option("--passes-per-token", options.passes_per_token, "That prompts take through iterated layers")
      ->check(at_least(1))
      ->capture_default_str()
      ->needs(serve)
      ->group(kGroup);
  verb.add_option("--kv-memory", options.kv_memory,
                  "Of a rank, for K/V, such as 4GiB; default: what the weights leave, 1GiB where that is not known")
      ->needs(serve)
      ->group(kGroup);
}

}  // namespace

void add_plan(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* verb =
      app.add_subcommand("plan", "Show who would hold which layers, send what and wait when; runs nothing");
  verb->add_option("--config", options->config, "Run config, .pbtxt (launch/recipes has some)")->required();
  verb->add_option("--set", options->overrides, "Override a field: --set train.micro_batch=2")
      ->type_name("FIELD=VALUE");
  options->mesh.add_to(*verb);
  verb->add_flag("--json", options->json, "Print JSON");
  add_serving_options(*verb, *options);
  verb->add_option("--svg", options->svg, "Also draw the schedule into this file");
  verb->footer(
      std::string("Times count layers, embedding, head and loss, and what stages send to one another; sums over tensor "
                  "and data\nranks and the update come on top. kvloom train takes the same flags and does what is "
                  "shown here.\n"
                  "The schedule: a column for each hundredth of a step shows what fills most of it, computing by its "
                  "micro-batch "
                  "or\nwaiting as '.'; --svg draws every chunk and message.\n\n") +
      kStartingRanks +
      "\nExample: kvloom plan --config launch/recipes/tiny.pbtxt --pp 4 --set train.micro_batch=1\n"
      "Example: kvloom plan --config launch/recipes/tiny.pbtxt --pp 2 --tp 2 --boundaries 5 --link-gbps 25\n"
      "Example: kvloom plan --config launch/recipes/tiny.pbtxt --pp 2 --stages-per-rank 2 --svg schedule.svg\n"
      "Example: kvloom plan --config launch/recipes/tiny.pbtxt --dp 2 --pp 2 --zero --devices h100 --json\n"
      "Example: kvloom plan --config launch/recipes/tiny.pbtxt --serve --pp 2 --tp 2 --devices h100 --batch 1 64");
  verb->callback([options] {
    require_one_rank();
    options->serve ? plan_serving(*options) : plan(*options);
  });
}

}  // namespace kvloom
