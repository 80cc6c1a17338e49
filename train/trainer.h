// Trains a model from a run config over a mesh of ranks: batches, gradients, updates, evaluation, checkpoints.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/checkpoint_reader.h"
#include "core/device_choice.h"
#include "core/model.h"
#include "core/tokenizer_files.h"
#include "data/dataset.h"
#include "data/token_file.h"
#include "parallel/communicator.h"
#include "proto/manifest.pb.h"
#include "proto/run.pb.h"
#include "train/background_loader.h"
#include "train/mesh_training.h"
#include "train/output_lock.h"

namespace kvloom {

// One optimizer step, as every rank sees it (means and sums are over all ranks).
struct StepReport {
  std::uint64_t step;  // counted from 1
  std::uint64_t steps;
  double loss;  // nats per token over the global batch, before the update
  double learning_rate;
  double gradient_norm;  // before clipping
  double tokens_per_second;
  double flops_per_second;  // by count (core/cost.h), all ranks together
  double seconds;
  std::uint64_t peak_bytes;  // of this rank's tensors
  std::uint64_t tokens;      // trained on so far, by all ranks and all runs that this one goes on with
  double epochs;             // how often that is all training tokens
  LinkBytes sent;            // between stages, by all ranks
};

struct EvaluationReport {
  std::uint64_t step;
  double loss;  // nats per token
  std::uint64_t tokens;
};

struct TrainStart {
  std::uint64_t first_step;  // steps that were done before
  const Model& model;
  std::int64_t training_tokens;  // of the data
  std::string note;              // where it goes on from, and how layers are placed, in words
};

// The step of the lowest validation loss.
struct BestStep {
  std::uint64_t step;
  double loss;
};

// What a run tells the outside. Called on rank 0 only.
class TrainObserver {
 public:
  virtual ~TrainObserver() = default;
  virtual void on_start(const TrainStart& start) = 0;
  virtual void on_step(const StepReport& report) = 0;
  // Of the step just reported; also before the first step, and of the step that a run goes on from, where it stopped
  // before this.
  virtual void on_evaluation(const EvaluationReport& report) = 0;
  // All of the step has been told; next comes its checkpoint, if any.
  virtual void on_step_end() {}
  virtual void on_checkpoint(std::uint64_t step, const std::string& folder) = 0;
  // What a person should know and nothing else says.
  virtual void on_note(const std::string& /*note*/) {}
};

enum class Resume : std::uint8_t {
  kNo,    // start at step 0; refuses an output directory that holds checkpoints
  kAuto,  // go on from the newest whole checkpoint in the output directory, if any
};

struct TrainerOptions {
  Resume resume = Resume::kNo;
  RankDevice device;                        // this rank's
  std::optional<std::uint64_t> stop_after;  // stop as if asked to, after this many steps in all
  // Asked between steps and between the batches of an evaluation, on every rank; any rank's yes stops all.
  std::function<bool()> stop_requested;
  TrainObserver* observer = nullptr;  // rank 0's; may be null
  Warning warn;                       // every rank's
  // Read before and after each step; what is reported of a step's speed goes by it.
  std::function<std::chrono::steady_clock::time_point()> now = std::chrono::steady_clock::now;
};

enum class TrainOutcome : std::uint8_t { kFinished, kStopped };

class Trainer {
 public:
  // `config` is filled and checked (core/config.h). Opens the data, makes or loads the model: to go on from, every rank
  // takes the checkpoint that rank 0 chose. Collective. Throws
  // InputError for a mesh, batch or vocabulary that does not fit, and for files that cannot be used.
  Trainer(proto::RunConfig config, Communicator& world, TrainerOptions options);

  // Steps until the config's last or until asked to stop; a checkpoint stands at the end either way, unless no step is
  // done. An evaluation that a stop cut short is due again when the run goes on. Throws Error with the step and the
  // tensors to blame when loss or gradient are not finite.
  TrainOutcome run();

  const Model& model() const { return mesh_.model(); }
  // Done, those before this run included.
  std::uint64_t steps_done() const { return step_; }
  std::optional<BestStep> best() const {
    return best_step_ == 0 ? std::nullopt : std::optional(BestStep{best_step_, best_loss_});
  }

 private:
  // How to take tokens of another tokenizer all the same.
  static constexpr const char* kAnyTokenizer = "set data.any_tokenizer: true";

  void check_vocabulary(const TokenFile& file, const std::string& path) const;
  void choose_tokenizer(const CheckpointReader& reader, const std::string& path);
  void lock_output();
  void resume_if_wanted();
  std::string choose_checkpoint(std::string& note);
  void check_goes_on(const CheckpointReader& reader) const;
  void load(const std::string& folder);
  void read_state(CheckpointReader& reader);
  void choose_best();
  void correct_best_mark() const;
  void find_best();
  void start_weights();
  void start_loader();
  void step();
  std::vector<MicroBatch> next_batches();
  [[noreturn]] void report_not_finite(double loss, double norm);
  std::optional<double> evaluate();
  void add_losses(const EvaluationWindows& windows, std::int64_t begin, std::int64_t end, double& nats, double& tokens);
  bool evaluate_and_save();
  bool is_best(double loss);
  void save(bool best);
  bool any_rank(bool wants);
  bool stop_requested();
  TrainOutcome stop();
  proto::Manifest manifest() const;

  proto::RunConfig config_;
  Communicator& world_;
  TrainerOptions options_;
  TokenFile tokens_;
  std::unique_ptr<TokenFile> validation_tokens_;  // of a file of its own
  MeshTraining mesh_;
  std::unique_ptr<TokenWindows> windows_;
  std::unique_ptr<OutputLock> lock_;  // rank 0's
  std::uint64_t step_ = 0;            // done
  std::uint64_t sequences_ = 0;       // consumed
  std::uint64_t saved_step_ = 0;
  double best_loss_ = 0;             // 0: none yet
  std::uint64_t best_step_ = 0;      // whose loss that is
  bool evaluation_pending_ = false;  // of step_
  CarriedTokenizer tokenizer_;       // that checkpoints carry
  proto::HuggingFaceOrigin origin_;  // of the weights that this run started from, if any
  double step_flops_ = 0;
  std::unique_ptr<BackgroundLoader> loader_;  // of this rank's micro-batches from step_ on; uses windows_
};

}  // namespace kvloom
