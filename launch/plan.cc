#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "core/config.h"
#include "core/file.h"
#include "core/same_file.h"
#include "kernels/error.h"
#include "launch/mesh_options.h"
#include "launch/plan_report.h"
#include "launch/ranks.h"
#include "launch/verbs.h"
#include "parallel/schedule_drawing.h"
#include "train/mesh_config.h"

namespace kvloom {
namespace {

struct Options {
  std::string config;
  std::vector<std::string> overrides;
  MeshOptions mesh;
  bool json = false;
  std::string svg;
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
      "Example: kvloom plan --config launch/recipes/tiny.pbtxt --dp 2 --pp 2 --zero --devices h100 --json");
  verb->callback([options] {
    require_one_rank();
    plan(*options);
  });
}

}  // namespace kvloom
