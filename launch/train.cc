#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <memory>
#include <optional>

#include "core/config.h"
#include "core/device_choice.h"
#include "launch/at_least.h"
#include "launch/memory_advice.h"
#include "launch/mesh_options.h"
#include "launch/rank_device.h"
#include "launch/ranks.h"
#include "launch/train_console.h"
#include "launch/verbs.h"
#include "train/trainer.h"

namespace kvloom {
namespace {

// Set by SIGINT, SIGTERM and SIGUSR1, in whichever thread they come to: the one thing that a signal handler may do, but
// for what it does at the next one.
std::atomic<int> stop_signal = 0;
static_assert(std::atomic<int>::is_always_lock_free);

// A second SIGINT or SIGTERM does what it does to any program. SIGUSR1 only ever asks: launchers send it more than
// once.
void on_signal(int signal) {
  stop_signal = signal;
  if (signal == SIGUSR1) return;
  std::signal(SIGINT, SIG_DFL);
  std::signal(SIGTERM, SIG_DFL);
}

// While one lives, these signals ask for a stop; before and after, they end the process, but for a SIGUSR1 that comes
// after: it asks for what is done.
class StopSignals {
 public:
  StopSignals() { set(on_signal); }
  ~StopSignals() {
    set(SIG_DFL);
    std::signal(SIGUSR1, SIG_IGN);
  }
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  static bool came() { return stop_signal != 0; }

 private:
  // mpirun passes SIGUSR1 on to its ranks, and so can Slurm ahead of a time limit; after SIGTERM mpirun kills them
  // within a second or two, saved or not.
  static void set(void (*handler)(int)) {
    for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) std::signal(signal, handler);
  }
};

struct Options {
  std::string config;
  std::vector<std::string> overrides;
  std::string resume = "no";
  RankDeviceOptions device;
  std::optional<std::uint64_t> stop_after;
  bool print_config = false;
  MeshOptions mesh;
};

// Rank 0 chooses the checkpoint that a run starts from, for all: on a disk that ranks share, another may see another
// newest one.
proto::RunConfig config_of(const Options& options, Communicator& world) {
  std::vector<std::string> overrides = options.mesh.after(options.overrides);
  proto::RunConfig config;
  if (world.rank() == 0) config = load_run_config(options.config, overrides);
  const std::string start_from = broadcast_bytes(world, config.train().start_from(), 0);
  if (world.rank() == 0) return config;
  overrides.push_back("train.start_from=" + start_from);
  return load_run_config(options.config, overrides);
}

RankDevice rank_device(const Options& options, const proto::RunConfig& config, const World& world) {
  NcclOptions nccl;
  nccl.limit = std::max(nccl.limit, std::chrono::milliseconds(std::chrono::seconds(config.mesh().patience_seconds())));
  return options.device.in_mesh(world, nccl);
}

// "data 2 x pipeline 2 x tensor 1, 4 ranks on cpu".
std::string described(const Options& options, const proto::RunConfig& config, World& world) {
  const int ranks = world.communicator().size();
  const auto at_least_one = [](std::uint32_t count) { return std::max<std::uint32_t>(1, count); };
  const std::uint32_t pipeline = at_least_one(config.mesh().pipeline());
  const std::uint32_t tensor = at_least_one(config.mesh().tensor());
  const std::uint32_t data = std::max<std::uint32_t>(1, static_cast<std::uint32_t>(ranks) / (pipeline * tensor));
  return fmt::format("data {} x pipeline {} x tensor {}, {} rank{} on {}", data, pipeline, tensor, ranks,
                     ranks == 1 ? "" : "s", options.device.name);
}

void train(const Options& options) {
  if (options.print_config) {
    fmt::print("{}", to_full_text(load_run_config(options.config, options.mesh.after(options.overrides))));
    return;
  }
  parse_device(options.device.name);  // refused before ranks meet
  // What is wrong with the config is wrong on every rank: within the world it is said once.
  run_in_world([&](World& world) {
    const proto::RunConfig config = config_of(options, world.communicator());
    if (config.data().tokens().empty()) reject_input("data.tokens: names no file; make one with kvloom tokenize");
    TrainConsole console(config, described(options, config, world));
    const bool first = world.communicator().rank() == 0;
    const auto warn = [&](const std::string& line) {
      fmt::print(stderr, "rank {}: {}\n", world.communicator().rank(), line);
    };
    std::optional<Trainer> trainer;
    with_memory_advice(kTrainMemory, [&] {
      trainer.emplace(config, world.communicator(),
                      TrainerOptions{.resume = options.resume == "auto" ? Resume::kAuto : Resume::kNo,
                                     .device = rank_device(options, config, world),
                                     .stop_after = options.stop_after,
                                     .stop_requested = StopSignals::came,
                                     .observer = first ? &console : nullptr,
                                     .warn = warn});
    });
    take_down_on_failure(world, [&] {
      const StopSignals signals;
      TrainOutcome outcome{};
      with_memory_advice(kTrainMemory, [&] { outcome = trainer->run(); });
      if (first) console.finish(*trainer, outcome);
    });
  });
}

}  // namespace

void add_train(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* verb = app.add_subcommand("train", "Train a model; start ranks with mpirun -n N kvloom train ...");
  verb->add_option("--config", options->config, "Run config, .pbtxt (launch/recipes has some)")->required();
  verb->add_option("--set", options->overrides, "Override a field: --set train.steps=100")->type_name("FIELD=VALUE");
  options->mesh.add_to(*verb);
  verb->add_option("--resume", options->resume, "auto: go on from the newest whole checkpoint of output.directory")
      ->check(CLI::IsMember({"auto", "no"}))
      ->capture_default_str();
  options->device.add_to(*verb);
  verb->add_option("--stop-after", options->stop_after, "Save and stop after this many steps in all")
      ->check(at_least(1));
  verb->add_flag("--print-config", options->print_config, "Print the config with every field, and stop");
  verb->footer(
      std::string(kStartingRanks) +
      "While it trains and evaluates, SIGINT, SIGTERM and SIGUSR1 finish the step, save and exit 0; an evaluation is\n"
      "left off, and done on resuming. Before, while it opens files and reads weights, they end the process; so does "
      "a\n"
      "second SIGINT or SIGTERM, at any time and unsaved. To mpirun send SIGUSR1: after SIGTERM it kills its ranks in\n"
      "two seconds, saved or not, and exits 1. After SIGINT (Ctrl-C) they save, but mpirun itself exits 1.\n"
      "Figures for programs: <output.directory>/metrics.jsonl, one JSON object a step: loss, learning_rate, "
      "grad_norm,\n"
      "tokens_per_second, time (seconds since 1970), seconds (of the step), tokens and epochs so far; validation_loss "
      "and\n"
      "validation_perplexity stand in that of the step they follow, and in one of their own at step 0 and\n"
      "where a run that was stopped before its evaluation goes on.\n"
      "Ranks on GPUs must each see all GPUs of their machine, as mpirun and Slurm's --gpus-per-node leave it.\n"
      "--print-config shows every field that --set takes, with its value.\n"
      "Example: kvloom train --config launch/recipes/tiny.pbtxt --set data.tokens=tokens.h5 --set model.kv_map=none\n"
      "Example: mpirun -n 2 kvloom train --config launch/recipes/tiny.pbtxt --set data.tokens=tokens.h5 --resume auto\n"
      "Example: mpirun -n 4 kvloom train --config launch/recipes/tiny.pbtxt --set data.tokens=tokens.h5 --tp 2 --pp 2\n"
      "Example: mpirun -n 4 kvloom train --config run.pbtxt --device cuda --tp 2");
  verb->callback([options] { train(*options); });
}

}  // namespace kvloom
