// Where a training starts from or goes on: its output directory, the checkpoint, what of it is the best.
#include <fmt/format.h>

#include "core/checkpoint_folder.h"
#include "core/convert/huggingface_origin.h"
#include "train/changed_settings.h"
#include "train/trainer.h"
#include "train/training_checkpoint.h"

namespace kvloom {

// A failure on rank 0 is every rank's, said once.
void Trainer::lock_output() {
  std::string refusal;
  if (world_.rank() == 0) {
    const std::string& directory = config_.output().directory();
    try {
      lock_ = std::make_unique<OutputLock>(directory);
      check_best_mark(directory);
      if (lock_->is_held()) clear_interrupted_saves(directory);
    } catch (const InputError& error) {
      refusal = error.what();
    }
  }
  refusal = broadcast_bytes(world_, refusal, 0);
  if (!refusal.empty()) reject_input("{}", refusal);
}

void Trainer::resume_if_wanted() {
  lock_output();
  std::string note;
  const std::string folder = broadcast_bytes(world_, world_.rank() == 0 ? choose_checkpoint(note) : std::string(), 0);
  if (folder.empty()) {
    start_weights();
  } else {
    load(folder);
  }
  choose_best();
  note += (note.empty() || mesh_.stages().empty() ? "" : "; ") + mesh_.stages();
  if (options_.observer == nullptr) return;
  options_.observer->on_start(
      {.first_step = step_, .model = mesh_.model(), .training_tokens = tokens_.count(Part::kTraining), .note = note});
}

// The folder to go on from, or nothing. Rank 0 alone looks: on a disk that ranks share, another may still see what was
// there before, or already what is being written.
std::string Trainer::choose_checkpoint(std::string& note) {
  const std::string& directory = config_.output().directory();
  if (options_.resume == Resume::kNo) {
    if (list_checkpoints(directory).empty()) return {};
    reject_input("output.directory: '{}' holds checkpoints; go on from them with --resume auto, or name another",
                 directory);
  }
  const LatestCheckpoint latest = latest_checkpoint(directory);
  std::string folder;
  if (latest.place.has_value()) {
    folder = latest.place->folder.string();
    const CheckpointReader reader(folder);
    check_goes_on(reader);
    const std::string changes = changed_settings(reader.manifest().run(), config_);
    note = fmt::format("resumed from {}{}{}", folder, changes.empty() ? "" : " with ", changes);
  }
  if (!latest.place.has_value() && !latest.passed_over.empty()) {
    reject_input(
        "output.directory: '{}' holds {} checkpoints and none is whole ({}); restore one, or name another "
        "directory to start anew",
        directory, latest.passed_over.size(), latest.passed_over.front());
  }
  for (const std::string& reason : latest.passed_over) note += fmt::format("; passed over: {}", reason);
  return folder;
}

void Trainer::check_goes_on(const CheckpointReader& reader) const {
  check_same_model(reader, config_.model());
  const std::string folder = reader.folder().string();
  const proto::TrainingState& state = reader.manifest().training();
  if (!state.data_identity().empty() && state.data_identity() != tokens_.identity()) {
    reject_input("data.tokens: '{}' is not the file that '{}' was trained on", config_.data().tokens(), folder);
  }
  if (state.seed() != config_.train().seed()) {
    reject_input("train.seed: {}; '{}' was trained with {}", config_.train().seed(), folder, state.seed());
  }
}

void Trainer::start_weights() {
  const std::string& from = config_.train().start_from();
  if (from.empty()) return mesh_.model().initialize(config_.train().seed());
  CheckpointReader reader(from);
  check_same_weights(reader, config_.model());
  origin_ = reader.manifest().huggingface();
  choose_tokenizer(reader, from);
  read_weights(reader, mesh_.model());
}

// Of an equal tokenizer the model's own files stay, with what lies beside tokenizer.json; of another one they go, and
// with them its ids. A model without one keeps what it says of ids: the tokens' tokenizer is the first to take them up.
void Trainer::choose_tokenizer(const CheckpointReader& reader, const std::string& path) {
  CarriedTokenizer own = tokenizer_of(reader.manifest());
  if (!own.kind.empty() && same_tokenizer(own, tokenizer_)) {
    tokenizer_ = std::move(own);
    return;
  }
  if (!own.kind.empty() && !config_.data().any_tokenizer()) {
    check_tokenizer(own, path, tokens_, config_.data().tokens(), kAnyTokenizer);
  }
  if (!own.kind.empty()) forget_tokenizer(origin_);
}

void Trainer::load(const std::string& folder) {
  CheckpointReader reader(folder);
  check_goes_on(reader);
  origin_ = reader.manifest().huggingface();
  if (CarriedTokenizer own = tokenizer_of(reader.manifest()); same_tokenizer(own, tokenizer_))
    tokenizer_ = std::move(own);
  read_state(reader);
  const proto::TrainingState& state = reader.manifest().training();
  step_ = state.step();
  saved_step_ = step_;
  sequences_ = state.sequences();
  best_loss_ = state.best_validation_loss();
  best_step_ = state.best_step();
  evaluation_pending_ = state.evaluation_pending();
}

// A damaged checkpoint stops the run: whether to lose the steps since the one before is not ours to say.
void Trainer::read_state(CheckpointReader& reader) {
  try {
    read_weights(reader, mesh_.model());
    read_moments(reader, mesh_.model(), mesh_.optimizer());
  } catch (const DamagedCheckpoint& error) {
    const auto before = latest_checkpoint(config_.output().directory(), reader.manifest().training().step()).place;
    if (!before.has_value()) throw;
    reject_input("{}; remove {} to go on from the one before, {}", error.what(), reader.folder().string(),
                 before->folder.string());
  }
}

// The best checkpoint says of itself that it is, before the mark beside it does: a run that ended between the two left
// the mark of the best one before. So does one whose newer checkpoints are gone.
void Trainer::choose_best() {
  if (world_.rank() == 0 && best_step_ != 0) find_best();
  world_.broadcast(std::span(&best_loss_, 1), 0);
  auto step = static_cast<std::int64_t>(best_step_);
  world_.broadcast(std::span(&step, 1), 0);
  best_step_ = static_cast<std::uint64_t>(step);
}

// Once nothing refuses the start any more: a mark that is not of the best checkpoint is corrected. Where none is left,
// it would be of a damaged one, or of one that this run has yet to make.
void Trainer::correct_best_mark() const {
  if (world_.rank() != 0) return;
  const std::filesystem::path directory = config_.output().directory();
  if (best_step_ == 0) return unmark_best_checkpoint(directory);
  const auto marked = best_checkpoint(directory);
  if (!marked || marked->step != best_step_) mark_best_checkpoint(directory, best_step_);
}

// Where the best checkpoint is no more, the best one of those that are: the next that beats it is marked again.
void Trainer::find_best() {
  double loss = 0;
  std::uint64_t step = 0;
  for (const CheckpointPlace& place : list_checkpoints(config_.output().directory())) {
    if (place.step > step_) break;
    try {
      const proto::TrainingState state = CheckpointReader(place.folder).manifest().training();
      if (state.best_step() != place.step) continue;  // others were no best when they were saved
      if (step != 0 && state.best_validation_loss() >= loss) continue;
      loss = state.best_validation_loss();
      step = place.step;
    } catch (const InputError&) {  // not whole
    }
  }
  best_loss_ = loss;
  best_step_ = step;
}

}  // namespace kvloom
