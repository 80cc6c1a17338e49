#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <memory>
#include <optional>

#include "core/config.h"
#include "core/device_choice.h"
#include "launch/at_least.h"
#include "launch/memory_advice.h"
#include "launch/mesh_options.h"
#include "launch/rank_device.h"
#include "launch/ranks.h"
#include "launch/terminal.h"
#include "launch/verbs.h"
#include "train/metrics.h"
#include "train/tensorboard.h"
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

class ConsoleObserver final : public TrainObserver {
 public:
  explicit ConsoleObserver(const proto::OutputConfig& output)
      : directory_(output.directory()), wants_tensorboard_(output.tensorboard()) {}

  void on_start(std::uint64_t first_step, const Model& model, const std::string& note) override {
    std::filesystem::create_directories(directory_);
    metrics_ = std::make_unique<MetricsWriter>(directory_ / "metrics.jsonl", first_step);
    if (wants_tensorboard_) tensorboard_ = std::make_unique<TensorboardWriter>(directory_, first_step);
    const ModelConfig& config = model.config();
    fmt::print(stderr, "{} parameters, {} layers, {} KV layers, {} compute{}{}\n",
               format_count(static_cast<double>(ParameterLayout(config, ModelShard::whole(config)).count())),
               config.layers, config.kv_map.kv_layers().size(), name_of(model.dtype()), note.empty() ? "" : "; ", note);
  }

  void on_step(const StepReport& report) override {
    StepMetrics metrics{.step = report.step,
                        .loss = report.loss,
                        .learning_rate = report.learning_rate,
                        .grad_norm = report.gradient_norm,
                        .tokens_per_second = report.tokens_per_second,
                        .more = {{"flops_per_second", report.flops_per_second},
                                 {"peak_bytes", static_cast<double>(report.peak_bytes)}}};
    if (report.sent.messages > 0) {
      metrics.more["sent_hidden_bytes"] = static_cast<double>(report.sent.hidden + report.sent.hidden_gradient);
      metrics.more["sent_key_value_bytes"] =
          static_cast<double>(report.sent.key_value + report.sent.key_value_gradient);
    }
    if (tensorboard_ != nullptr) tensorboard_->write(metrics);
    step_metrics_ = std::move(metrics);
    // Smoothed, so that one slow step does not throw the estimate.
    seconds_ = seconds_ == 0 ? report.seconds : 0.9 * seconds_ + 0.1 * report.seconds;
    const double left = seconds_ * static_cast<double>(report.steps - report.step);
    if (!is_terminal(Stream::kError) && !worth_a_line(report)) return;
    progress_.show(
        fmt::format("step {}/{}  loss {:.4f}  lr {:.2e}  grad norm {:.3f}  {} tokens/s  {}FLOP/s  {}  {} left",
                    report.step, report.steps, report.loss, report.learning_rate, report.gradient_norm,
                    format_count(report.tokens_per_second), format_count(report.flops_per_second),
                    format_bytes(static_cast<double>(report.peak_bytes)), format_seconds(left)));
    if (report.step == report.steps) progress_.end();
  }

  void on_evaluation(const EvaluationReport& report) override {
    const EvaluationMetrics metrics{.step = report.step, .loss = report.loss};
    if (tensorboard_ != nullptr) tensorboard_->write(metrics);
    if (step_metrics_.has_value()) {
      step_metrics_->more.merge(fields_of(metrics));
    } else {
      metrics_->write(metrics);
    }
    progress_.end();
    fmt::print(stderr, "step {}  validation loss {:.4f} over {} tokens\n", report.step, report.loss, report.tokens);
  }

  void on_step_end() override {
    if (step_metrics_.has_value()) metrics_->write(*step_metrics_);
    step_metrics_.reset();
  }

  void on_checkpoint(std::uint64_t, const std::string& folder) override {
    progress_.end();
    fmt::print(stderr, "saved {}\n", folder);
  }

  void on_note(const std::string& note) override {
    progress_.end();
    fmt::print(stderr, "{}\n", note);
  }

 private:
  // In a log, about fifty lines a run.
  static bool worth_a_line(const StepReport& report) {
    const std::uint64_t every = std::max<std::uint64_t>(1, report.steps / 50);
    return report.step == 1 || report.step % every == 0 || report.step == report.steps;
  }

  std::filesystem::path directory_;
  bool wants_tensorboard_;
  std::unique_ptr<MetricsWriter> metrics_;
  std::unique_ptr<TensorboardWriter> tensorboard_;
  std::optional<StepMetrics> step_metrics_;  // of the step that is not over yet
  ProgressLine progress_;
  double seconds_ = 0;
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
    ConsoleObserver observer(config.output());
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
                                     .observer = first ? &observer : nullptr,
                                     .warn = warn});
    });
    take_down_on_failure(world, [&] {
      const StopSignals signals;
      TrainOutcome outcome{};
      with_memory_advice(kTrainMemory, [&] { outcome = trainer->run(); });
      if (outcome != TrainOutcome::kStopped || !first) return;
      fmt::print(stderr, "{}\n",
                 trainer->steps_done() == 0 ? "stopped before the first step; there is nothing to save"
                                            : "stopped; go on with --resume auto");
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
      "Figures for programs: <output.directory>/metrics.jsonl, one JSON object a step; validation_loss and\n"
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
