#include "train/trainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>

#include "core/checkpoint_folder.h"
#include "core/convert/model_source.h"
#include "core/cost.h"
#include "train/learning_rate.h"
#include "train/replica_check.h"
#include "train/training_checkpoint.h"

namespace kvloom {
namespace {

// Micro-batches in memory beyond the one in use: a few kilobytes each.
constexpr std::size_t kReadAhead = 4;

// Of one evaluation at a time, so that a rank holds few batches.
constexpr std::int64_t kEvaluationSequences = 16;

constexpr const char* kAnyTokenizer = "set data.any_tokenizer: true";

}  // namespace

Trainer::Trainer(proto::RunConfig config, Communicator& world, TrainerOptions options)
    : config_(std::move(config)),
      world_(world),
      options_(std::move(options)),
      tokens_(config_.data().tokens()),
      mesh_(config_, world, options_.device) {
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
  if (file.vocab() > static_cast<std::int64_t>(config_.model().vocab())) {
    reject_input("model.vocab: {}; '{}' holds tokens of a vocabulary of {}", config_.model().vocab(), path,
                 file.vocab());
  }
}

// A failure on rank 0 is every rank's, said once.
void Trainer::lock_output() {
  std::string refusal;
  if (world_.rank() == 0) {
    const std::string& directory = config_.output().directory();
    try {
      lock_ = std::make_unique<OutputLock>(directory);
      if (lock_->is_held()) clear_interrupted_saves(directory);
    } catch (const InputError& error) {
      refusal = error.what();
    }
  }
  refusal = broadcast_bytes(world_, refusal, 0);
  if (!refusal.empty()) reject_input("{}", refusal);
}

void Trainer::resume_if_wanted() {
  const std::string& directory = config_.output().directory();
  lock_output();
  const LatestCheckpoint latest = latest_checkpoint(directory);
  std::string note;
  if (options_.resume == Resume::kNo) {
    if (!list_checkpoints(directory).empty()) {
      reject_input("output.directory: '{}' holds checkpoints; go on from them with --resume auto, or name another",
                   directory);
    }
  } else if (latest.place.has_value()) {
    note = fmt::format("resumed from {}", latest.place->folder.string());
  }
  for (const std::string& reason : latest.passed_over) note += fmt::format("; passed over: {}", reason);
  if (options_.resume == Resume::kAuto && latest.place.has_value()) {
    load(latest.place->folder.string());
  } else {
    start_weights();
  }
  note += (note.empty() || mesh_.stages().empty() ? "" : "; ") + mesh_.stages();
  if (options_.observer != nullptr) options_.observer->on_start(step_, mesh_.model(), note);
}

void Trainer::start_weights() {
  const std::string& from = config_.train().start_from();
  if (from.empty()) return mesh_.model().initialize(config_.train().seed());
  const auto folder = checkpoint_at(from);
  if (!folder) reject_input("train.start_from: '{}' is no checkpoint and no output directory", from);
  CheckpointReader reader(*folder);
  check_same_weights(reader, config_.model());
  origin_ = reader.manifest().huggingface();
  check_start_tokenizer(reader, from);
  read_weights(reader, mesh_.model());
}

// With another tokenizer, the files of the model's own stay behind.
void Trainer::check_start_tokenizer(const CheckpointReader& reader, const std::string& path) {
  const CarriedTokenizer tokenizer = tokenizer_of(reader.manifest());
  if (tokenizer.kind.empty() || same_tokenizer(tokenizer, tokenizer_of(tokens_))) return;
  if (!config_.data().any_tokenizer()) {
    check_tokenizer(tokenizer, path, tokens_, config_.data().tokens(), kAnyTokenizer);
  }
  auto& files = *origin_.mutable_files();
  files.erase(std::remove_if(files.begin(), files.end(), [](const auto& file) { return is_of_tokenizer(file.name()); }),
              files.end());
}

void Trainer::load(const std::string& folder) {
  CheckpointReader reader(folder);
  origin_ = reader.manifest().huggingface();
  check_same_model(reader, config_.model());
  const proto::TrainingState& state = reader.manifest().training();
  if (!state.data_identity().empty() && state.data_identity() != tokens_.identity()) {
    reject_input("data.tokens: '{}' is not the file that '{}' was trained on", config_.data().tokens(), folder);
  }
  if (state.seed() != config_.train().seed()) {
    reject_input("train.seed: {}; '{}' was trained with {}", config_.train().seed(), folder, state.seed());
  }
  read_weights(reader, mesh_.model());
  read_moments(reader, mesh_.model(), mesh_.optimizer());
  step_ = state.step();
  saved_step_ = step_;
  sequences_ = state.sequences();
  best_loss_ = state.best_validation_loss();
}

TrainOutcome Trainer::run() {
  // Where the loss starts from, for runs that look at it on the way.
  if (step_ == 0 && config_.train().evaluate_every() != 0) evaluate();
  start_loader();
  while (step_ < config_.train().steps()) {
    if (stop_wanted()) {
      if (saved_step_ != step_) save(false);
      return TrainOutcome::kStopped;
    }
    step();
    evaluate_and_save();
  }
  return TrainOutcome::kFinished;
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

bool Trainer::stop_wanted() {
  std::int32_t wanted = options_.stop_requested && options_.stop_requested() ? 1 : 0;
  if (options_.stop_after.has_value() && step_ >= *options_.stop_after) wanted = 1;
  world_.all_reduce(std::span(&wanted, 1), Reduction::kMax);
  return wanted != 0;
}

void Trainer::step() {
  const auto start = std::chrono::steady_clock::now();
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
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const auto tokens = static_cast<double>(train.global_batch()) * static_cast<double>(config_.model().context());
  options_.observer->on_step({.step = step_,
                              .steps = train.steps(),
                              .loss = loss,
                              .learning_rate = rate,
                              .gradient_norm = norm,
                              .tokens_per_second = tokens / seconds,
                              .flops_per_second = step_flops_ / seconds,
                              .seconds = seconds,
                              .peak_bytes = mesh_.peak_bytes(),
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

double Trainer::evaluate() {
  const TokenFile& file = validation_tokens_ != nullptr ? *validation_tokens_ : tokens_;
  if (file.count(Part::kValidation) < 2) return 0;
  const std::int64_t context = mesh_.model().config().context;
  const EvaluationWindows windows(file, Part::kValidation, context);
  const auto count = std::min<std::int64_t>(windows.size(), config_.train().evaluation_sequences());
  double loss_sum = 0;
  double tokens = 0;
  std::vector<std::int32_t> input(static_cast<std::size_t>(context));
  std::vector<std::int32_t> target(input.size());
  std::vector<TokenBatch> batches;
  for (std::int64_t i = mesh_.ranks().place().data; i < count; i += mesh_.ranks().mesh().data) {
    windows.fill(i, input, target);
    tokens += static_cast<double>(std::ranges::count_if(target, [](std::int32_t t) { return t != kIgnoredTarget; }));
    batches.push_back(make_token_batch(mesh_.model(), input, target, 1));
    if (std::ssize(batches) < kEvaluationSequences && i + mesh_.ranks().mesh().data < count) continue;
    loss_sum += mesh_.evaluate(batches);
    batches.clear();
  }
  std::array<double, 2> sums = {loss_sum, tokens};
  mesh_.ranks().data().all_reduce(std::span<double>(sums));
  const double loss = sums[0] / sums[1];
  if (options_.observer != nullptr) {
    options_.observer->on_evaluation({.step = step_, .loss = loss, .tokens = static_cast<std::uint64_t>(sums[1])});
  }
  return loss;
}

void Trainer::evaluate_and_save() {
  const bool end = step_ == config_.train().steps();
  const auto every = [&](std::uint32_t interval) { return interval != 0 && step_ % interval == 0; };
  bool best = false;
  if (end || every(config_.train().evaluate_every())) {
    const double loss = evaluate();
    best = loss > 0 && (best_loss_ == 0 || loss < best_loss_);
    if (best) best_loss_ = loss;
  }
  if (end || best || every(config_.output().checkpoint_every())) save(best);
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
  state.set_seed(config_.train().seed());
  state.set_data_identity(tokens_.identity());
  manifest.set_tokenizer_kind(tokens_.tokenizer_kind());
  manifest.set_tokenizer(tokens_.tokenizer_model());
  if (!origin_.config().empty()) *manifest.mutable_huggingface() = origin_;
  manifest.set_created_by("kvloom 0.1.0");
  return manifest;
}

}  // namespace kvloom
