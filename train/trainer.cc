#include "train/trainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "core/checkpoint_folder.h"
#include "core/cost.h"
#include "core/version.h"
#include "train/learning_rate.h"
#include "train/replica_check.h"
#include "train/training_checkpoint.h"

namespace kvloom {
namespace {

// Micro-batches in memory beyond the one in use: a few kilobytes each.
constexpr std::size_t kReadAhead = 4;

// Of one evaluation at a time, so that a rank holds few batches.
constexpr std::int64_t kEvaluationSequences = 16;

}  // namespace

Trainer::Trainer(proto::RunConfig config, Communicator& world, TrainerOptions options)
    : config_(std::move(config)),
      world_(world),
      options_(std::move(options)),
      tokens_(config_.data().tokens()),
      mesh_(config_, world, options_.device, options_.warn),
      tokenizer_(tokenizer_of(tokens_)) {
  check_vocabulary(tokens_, config_.data().tokens());
  if (!config_.data().validation_tokens().empty()) {
    validation_tokens_ = std::make_unique<TokenFile>(config_.data().validation_tokens());
    check_vocabulary(*validation_tokens_, config_.data().validation_tokens());
    if (!config_.data().any_tokenizer()) {
      check_tokenizer(tokenizer_of(tokens_), config_.data().tokens(), *validation_tokens_,
                      config_.data().validation_tokens(), kAnyTokenizer);
    }
  }
  const ModelConfig& shape = mesh_.model().config();
  windows_ = std::make_unique<TokenWindows>(tokens_, shape.context, config_.train().seed());
  resume_if_wanted();
  step_flops_ = static_cast<double>(config_.train().global_batch()) *
                (plan_flops(shape, mesh_.plan(), shape.context).total() +
                 head_flops(shape, shape.context, PlanMode::kTrain).total());
}

void Trainer::check_vocabulary(const TokenFile& file, const std::string& path) const {
  if (file.used_vocab() > static_cast<std::int64_t>(config_.model().vocab())) {
    reject_input("model.vocab: {}; '{}' holds token {} of a vocabulary of {}", config_.model().vocab(), path,
                 file.used_vocab() - 1, file.vocab());
  }
}

TrainOutcome Trainer::run() {
  correct_best_mark();
  // Where the loss starts from, for runs that look at it on the way.
  if (step_ == 0 && config_.train().evaluate_every() != 0 && !evaluate()) return stop();
  if (evaluation_pending_ && !evaluate_and_save()) return stop();
  start_loader();
  while (step_ < config_.train().steps()) {
    const bool far_enough = options_.stop_after.has_value() && step_ >= *options_.stop_after;
    if (any_rank(far_enough) || stop_requested()) return stop();
    step();
    if (!evaluate_and_save()) return stop();
  }
  return TrainOutcome::kFinished;
}

TrainOutcome Trainer::stop() {
  if (saved_step_ != step_) save(false);
  return TrainOutcome::kStopped;
}

// Micro-batch n, counted from the first that this run trains on: which sequences it holds follows from the step and
// this rank's share of the global batch.
void Trainer::start_loader() {
  const std::int64_t context = mesh_.model().config().context;
  const std::int64_t global = config_.train().global_batch();
  const std::int64_t micro = config_.train().micro_batch();
  const std::int64_t share = global / mesh_.ranks().mesh().data;
  const std::int64_t first = static_cast<std::int64_t>(sequences_) + mesh_.ranks().place().data * share;
  const auto read = [=, this](std::uint64_t index) {
    const auto sequence = static_cast<std::int64_t>(index) * micro;
    MicroBatch batch{.tokens = std::vector<std::int32_t>(static_cast<std::size_t>(micro * context)),
                     .targets = std::vector<std::int32_t>(static_cast<std::size_t>(micro * context))};
    windows_->fill(first + sequence / share * global + sequence % share, micro, batch.tokens, batch.targets);
    return batch;
  };
  loader_ = std::make_unique<BackgroundLoader>(read, 0, kReadAhead);
}

bool Trainer::any_rank(bool wants) {
  std::int32_t wanted = wants ? 1 : 0;
  world_.all_reduce(std::span(&wanted, 1), Reduction::kMax);
  return wanted != 0;
}

bool Trainer::stop_requested() { return any_rank(options_.stop_requested && options_.stop_requested()); }

void Trainer::step() {
  const auto start = options_.now();
  const proto::TrainConfig& train = config_.train();
  const double loss = mesh_.accumulate_gradients(next_batches());
  const double norm = mesh_.gradient_norm();
  if (!std::isfinite(loss) || !std::isfinite(norm)) report_not_finite(loss, norm);
  const double rate = learning_rate_at(step_ + 1, train);
  mesh_.update(rate, clip_scale(norm, train.gradient_clip()));
  ++step_;
  sequences_ += train.global_batch();
  const std::uint32_t check_every = train.check_replicas_every();
  if (check_every != 0 && step_ % check_every == 0) check_replicas(mesh_.ranks(), mesh_.model(), step_);
  if (options_.observer == nullptr) return;
  const double seconds = std::chrono::duration<double>(options_.now() - start).count();
  const auto tokens = static_cast<double>(train.global_batch()) * static_cast<double>(config_.model().context());
  options_.observer->on_step(
      {.step = step_,
       .steps = train.steps(),
       .loss = loss,
       .learning_rate = rate,
       .gradient_norm = norm,
       .tokens_per_second = tokens / seconds,
       .flops_per_second = step_flops_ / seconds,
       .seconds = seconds,
       .peak_bytes = mesh_.peak_bytes(),
       .tokens = sequences_ * config_.model().context(),
       .epochs = static_cast<double>(sequences_) * static_cast<double>(config_.model().context()) /
                 static_cast<double>(tokens_.count(Part::kTraining)),
       .sent = mesh_.sent()});
}

std::vector<MicroBatch> Trainer::next_batches() {
  std::vector<MicroBatch> batches;
  for (std::int64_t i = 0; i < mesh_.micro_batches(); ++i) batches.push_back(loader_->next());
  return batches;
}

void Trainer::report_not_finite(double loss, double norm) {
  std::string blamed;
  int count = 0;
  for (const Parameter& parameter : mesh_.model().layout().all()) {
    const double tensor_norm = gradient_norm(mesh_.gradients().view(parameter.offset, parameter.shape));
    const double weight_norm = gradient_norm(mesh_.model().master().view(parameter.offset, parameter.shape));
    if (std::isfinite(tensor_norm) && std::isfinite(weight_norm)) continue;
    blamed += fmt::format("{}{} (weights {}, gradient {})", blamed.empty() ? "" : ", ", parameter.name, weight_norm,
                          tensor_norm);
    if (++count == 4) break;
  }
  std::vector<std::string> all = all_gather_bytes(world_, blamed);
  std::erase(all, "");
  fail("step {}: loss {} and gradient norm {} are not finite; first tensors: {}; try a lower train.learning_rate",
       step_ + 1, loss, norm, all.empty() ? "none, the loss itself" : all.front());
}

// Nothing when asked to stop meanwhile; 0 when there is nothing to evaluate on.
std::optional<double> Trainer::evaluate() {
  const TokenFile& file = validation_tokens_ != nullptr ? *validation_tokens_ : tokens_;
  if (file.count(Part::kValidation) < 2) return 0;
  const EvaluationWindows windows(file, Part::kValidation, mesh_.model().config().context);
  const auto count = std::min<std::int64_t>(windows.size(), config_.train().evaluation_sequences());
  const std::int64_t together = kEvaluationSequences * mesh_.ranks().mesh().data;
  std::array<double, 2> sums = {0, 0};
  for (std::int64_t begin = 0; begin < count; begin += together) {
    if (stop_requested()) return std::nullopt;
    add_losses(windows, begin, std::min(begin + together, count), sums[0], sums[1]);
  }
  mesh_.ranks().data().all_reduce(std::span<double>(sums));
  // Each stage and tensor rank has added it up itself, maybe in another order; what follows from it all do alike.
  double loss = sums[0] / sums[1];
  world_.broadcast(std::span(&loss, 1), 0);
  if (options_.observer != nullptr) {
    options_.observer->on_evaluation({.step = step_, .loss = loss, .tokens = static_cast<std::uint64_t>(sums[1])});
  }
  return loss;
}

// nats and tokens += those of this data rank's windows among [begin, end).
void Trainer::add_losses(const EvaluationWindows& windows, std::int64_t begin, std::int64_t end, double& nats,
                         double& tokens) {
  std::vector<std::int32_t> input(static_cast<std::size_t>(mesh_.model().config().context));
  std::vector<std::int32_t> target(input.size());
  std::vector<TokenBatch> batches;
  for (std::int64_t i = begin + mesh_.ranks().place().data; i < end; i += mesh_.ranks().mesh().data) {
    windows.fill(i, input, target);
    tokens += static_cast<double>(std::ranges::count_if(target, [](std::int32_t t) { return t != kIgnoredTarget; }));
    batches.push_back(make_token_batch(mesh_.model(), input, target, 1));
  }
  if (!batches.empty()) nats += mesh_.evaluate(batches);
}

// False when asked to stop during the evaluation, which stays due.
bool Trainer::evaluate_and_save() {
  const bool end = step_ == config_.train().steps();
  const auto every = [&](std::uint32_t interval) { return interval != 0 && step_ % interval == 0; };
  const bool overdue = evaluation_pending_;
  evaluation_pending_ = overdue || end || every(config_.train().evaluate_every());
  bool best = false;
  if (evaluation_pending_) {
    if (const auto loss = evaluate()) {
      evaluation_pending_ = false;
      best = is_best(*loss);
    }
  }
  if (options_.observer != nullptr) options_.observer->on_step_end();
  if (evaluation_pending_) return false;
  if (end || best || overdue || every(config_.output().checkpoint_every())) save(best);
  return true;
}

bool Trainer::is_best(double loss) {
  if (!(loss > 0) || (best_step_ != 0 && loss >= best_loss_)) return false;
  best_loss_ = loss;
  best_step_ = step_;
  return true;
}

void Trainer::save(bool best) {
  // A rank that fails here leaves the others waiting: they learn of it by the launcher's abort.
  const std::filesystem::path directory = config_.output().directory();
  const std::filesystem::path folder = directory / checkpoint_name(step_);
  const auto aside = write_training_checkpoint(folder, mesh_.ranks(), mesh_.model(), mesh_.optimizer(),
                                               mesh_.update_sharing(), manifest());
  if (world_.rank() == 0) {
    if (aside && options_.observer != nullptr) {
      options_.observer->on_note(
          fmt::format("{} stood there, and no checkpoint alone; it is {} now", folder.string(), aside->string()));
    }
    if (best) mark_best_checkpoint(directory, step_);
    prune_checkpoints(directory, config_.output().keep());
    if (options_.observer != nullptr) options_.observer->on_checkpoint(step_, folder.string());
  }
  saved_step_ = step_;
  world_.barrier();
}

proto::Manifest Trainer::manifest() const {
  proto::Manifest manifest;
  *manifest.mutable_model() = mesh_.model().config().to_proto();
  *manifest.mutable_passes() = config_.passes();
  *manifest.mutable_mesh() = config_.mesh();
  manifest.mutable_mesh()->set_data(static_cast<std::uint32_t>(mesh_.ranks().mesh().data));
  *manifest.mutable_run() = config_;
  proto::TrainingState& state = *manifest.mutable_training();
  state.set_step(step_);
  state.set_sequences(sequences_);
  state.set_best_validation_loss(best_loss_);
  state.set_best_step(best_step_);
  state.set_evaluation_pending(evaluation_pending_);
  state.set_seed(config_.train().seed());
  state.set_data_identity(tokens_.identity());
  manifest.set_tokenizer_kind(tokenizer_.kind);
  manifest.set_tokenizer(tokenizer_.content);
  if (!origin_.config().empty()) *manifest.mutable_huggingface() = origin_;
  manifest.set_created_by(program_and_version());
  return manifest;
}

}  // namespace kvloom
