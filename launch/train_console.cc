#include "launch/train_console.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "core/parameters.h"
#include "core/quantity_text.h"

namespace kvloom {
namespace {

// In a log, about fifty lines a run.
bool worth_a_line(const StepReport& report) {
  const std::uint64_t every = std::max<std::uint64_t>(1, report.steps / 50);
  return report.step == 1 || report.step % every == 0 || report.step == report.steps;
}

double seconds_since_1970() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

StepMetrics metrics_of(const StepReport& report) {
  StepMetrics metrics{.step = report.step,
                      .loss = report.loss,
                      .learning_rate = report.learning_rate,
                      .grad_norm = report.gradient_norm,
                      .tokens_per_second = report.tokens_per_second,
                      .more = {{"flops_per_second", report.flops_per_second},
                               {"peak_bytes", static_cast<double>(report.peak_bytes)},
                               {"time", seconds_since_1970()},
                               {"seconds", report.seconds},
                               {"tokens", static_cast<double>(report.tokens)},
                               {"epochs", report.epochs}}};
  if (report.sent.messages > 0) {
    metrics.more["sent_hidden_bytes"] = static_cast<double>(report.sent.hidden + report.sent.hidden_gradient);
    metrics.more["sent_key_value_bytes"] = static_cast<double>(report.sent.key_value + report.sent.key_value_gradient);
  }
  return metrics;
}

// A long map's middle says little.
std::string shortened(const std::string& map) {
  constexpr std::size_t kLongest = 48;
  return map.size() <= kLongest ? map : map.substr(0, kLongest - 13) + "..." + map.substr(map.size() - 10);
}

}  // namespace

TrainConsole::TrainConsole(const proto::RunConfig& config, std::string where)
    : config_(config), where_(std::move(where)), directory_(config.output().directory()) {}

void TrainConsole::on_start(const TrainStart& start) {
  std::filesystem::create_directories(directory_);
  metrics_ = std::make_unique<MetricsWriter>(directory_ / "metrics.jsonl", start.first_step);
  if (config_.output().tensorboard()) {
    tensorboard_ = std::make_unique<TensorboardWriter>(directory_, start.first_step);
  }
  first_step_ = start.first_step;
  start_ = std::chrono::steady_clock::now();
  const ModelConfig& config = start.model.config();
  const proto::TrainConfig& train = config_.train();
  const double step_tokens = static_cast<double>(train.global_batch()) * static_cast<double>(config.context);
  fmt::print(stderr, "model: {} parameters, {} layers, {} KV layers ({}), {} compute\n",
             format_count(static_cast<double>(ParameterLayout(config, ModelShard::whole(config)).count())),
             config.layers, config.kv_map.kv_layers().size(), shortened(config.kv_map.explicit_form()),
             name_of(start.model.dtype()));
  fmt::print(stderr, "mesh: {}\n", where_);
  fmt::print(stderr, "data: {}, {} training tokens; {} tokens a step, {} steps, {:.3g} epochs\n",
             config_.data().tokens(), format_count(static_cast<double>(start.training_tokens)),
             format_count(step_tokens), train.steps(),
             step_tokens * static_cast<double>(train.steps()) / static_cast<double>(start.training_tokens));
  fmt::print(stderr, "output: {}{}{}\n", directory_.string(), start.note.empty() ? "" : "; ", start.note);
}

void TrainConsole::on_step(const StepReport& report) {
  StepMetrics metrics = metrics_of(report);
  if (tensorboard_ != nullptr) tensorboard_->write(metrics);
  step_metrics_ = std::move(metrics);
  step_seconds_ += report.seconds;
  last_loss_ = report.loss;
  peak_bytes_ = report.peak_bytes;
  // Smoothed, so that one slow step does not throw the estimate.
  smoothed_seconds_ = smoothed_seconds_ == 0 ? report.seconds : 0.9 * smoothed_seconds_ + 0.1 * report.seconds;
  const double left = smoothed_seconds_ * static_cast<double>(report.steps - report.step);
  if (!is_terminal(Stream::kError) && !worth_a_line(report)) return;
  // At most 80 columns.
  progress_.show(fmt::format("{} left  step {}/{}  loss {:.4f}  lr {:.1e}  norm {:.2f}  {} tokens/s",
                             format_seconds(left), report.step, report.steps, report.loss, report.learning_rate,
                             report.gradient_norm, format_count(report.tokens_per_second)));
  if (report.step == report.steps) progress_.end();
}

void TrainConsole::on_evaluation(const EvaluationReport& report) {
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

void TrainConsole::on_step_end() {
  if (step_metrics_.has_value()) metrics_->write(*step_metrics_);
  step_metrics_.reset();
}

void TrainConsole::on_checkpoint(std::uint64_t, const std::string& folder) {
  progress_.end();
  fmt::print(stderr, "saved {}\n", folder);
}

void TrainConsole::on_note(const std::string& note) {
  progress_.end();
  fmt::print(stderr, "{}\n", note);
}

void TrainConsole::finish(const Trainer& trainer, TrainOutcome outcome) {
  progress_.end();
  const std::uint64_t done = trainer.steps_done() - first_step_;
  if (outcome == TrainOutcome::kFinished && done == 0) {
    fmt::print(stderr, "all {} steps were done before; raise train.steps to go on\n", trainer.steps_done());
  } else if (done > 0) {
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    const double tokens = static_cast<double>(done) * static_cast<double>(config_.train().global_batch()) *
                          static_cast<double>(trainer.model().config().context);
    fmt::print(stderr, "{} steps in {}, {} tokens/s while stepping, {} at most; loss {:.4f}", done,
               format_seconds(seconds), format_count(tokens / std::max(step_seconds_, 1e-9)),
               format_bytes(static_cast<double>(peak_bytes_)), last_loss_);
    if (const auto best = trainer.best()) {
      fmt::print(stderr, "; best validation loss {:.4f} at step {}", best->loss, best->step);
    }
    fmt::print(stderr, "\ncheckpoints and metrics.jsonl are in {}\n", directory_.string());
  }
  if (outcome != TrainOutcome::kStopped) return;
  fmt::print(stderr, "{}\n",
             trainer.steps_done() == 0 ? "stopped before the first step; there is nothing to save"
                                       : "stopped; go on with --resume auto");
}

}  // namespace kvloom
