#include "parallel/pipeline.h"

#include <numeric>
#include <utility>

#include "core/head.h"
#include "kernels/error.h"
#include "parallel/micro_batch_run.h"

namespace kvloom {

ModelShard pipeline_shard(const StageLayout& layout, int rank, int tensor_rank, int tensor_size) {
  ModelShard shard{.layers = {},
                   .embedding = layout.rank_of_stage(0) == rank,
                   .head = layout.rank_of_stage(layout.stages() - 1) == rank,
                   .tensor_rank = tensor_rank,
                   .tensor_size = tensor_size};
  for (int stage = rank; stage < layout.stages(); stage += layout.ranks()) {
    shard.layers.push_back({layout.first_layer(stage), layout.end_layer(stage)});
  }
  return shard;
}

// One call of train or evaluate.
class Pipeline::Step {
 public:
  Step(Pipeline& pipeline, std::span<const TokenBatch> batches, float grad_scale, ModelGradients* gradients,
       PartComplete complete)
      : p_(pipeline),
        batches_(batches),
        grad_scale_(grad_scale),
        gradients_(gradients),
        complete_(std::move(complete)),
        last_uses_(p_.chain_, p_.plan_, p_.model_.config().kv_map, p_.ranks_.rank()),
        schedule_(p_.schedule(static_cast<int>(batches.size()))),
        messages_(p_.chain_, schedule_, p_.ranks_, p_.options_.patience) {
    if (complete_) count_backward_runs();
  }

  double run() {
    for (const Instruction& instruction : schedule_.ranks.at(static_cast<std::size_t>(p_.ranks_.rank()))) {
      execute(instruction);
    }
    messages_.finish();
    if (!running_.empty()) fail("pipeline: micro-batch {} was not finished", running_.begin()->first);
    return std::accumulate(losses_.begin(), losses_.end(), 0.0,
                           [](double sum, const Tensor& losses) { return sum + sum_of_losses(losses); });
  }

 private:
  void execute(const Instruction& instruction) {
    switch (instruction.action) {
      case Action::kForward:
        return forward(instruction.micro_batch, instruction.index);
      case Action::kBackward:
        return backward(instruction.micro_batch, instruction.index);
      case Action::kSend:
        return send({instruction.micro_batch, instruction.index, instruction.gradient});
      case Action::kReceive: {
        const MessageKey key{instruction.micro_batch, instruction.index, instruction.gradient};
        return messages_.post(key, buffers(key));
      }
    }
  }

  struct Running {
    MicroBatchRun run;
    bool has_run = false;        // its last chunk here
    std::size_t sends_left = 0;  // of what that chunk completed
  };

  MicroBatchRun& micro_batch(int index) {
    const auto found = running_.find(index);
    if (found != running_.end()) return found->second.run;
    const PlanRunOptions options{.sequences = p_.options_.sequences,
                                 .positions = p_.options_.positions,
                                 .recompute = p_.options_.recompute,
                                 .tensor = p_.tensor_,
                                 .after_backward = after_backward()};
    const TokenBatch& batch = batches_[static_cast<std::size_t>(index)];
    const auto place = running_.try_emplace(
        index, MicroBatchRun(p_.model_, p_.plan_, p_.rope_, options, p_.chain_, last_uses_, batch));
    return place.first->second.run;
  }

  // Of every micro-batch, the runs that add to a part's gradient; the head's are those of its loss.
  void count_backward_runs() {
    const auto micro_batches = static_cast<std::int64_t>(batches_.size());
    for (const PlanStep& step : p_.plan_.steps) {
      if (!step.keeps_gradient) continue;
      for (const LayerRun& run : step.layers) runs_left_[run.layer] += micro_batches;
    }
    runs_left_[head_part()] = micro_batches;
  }

  int head_part() const { return static_cast<int>(p_.model_.config().layers); }

  void count_down(int part) {
    if (--runs_left_.at(part) == 0) complete_(part);
  }

  std::function<void(int)> after_backward() {
    if (!complete_) return {};
    return [this](int layer) { count_down(layer); };
  }

  void forward(int index, int chunk) {
    const auto at = static_cast<std::size_t>(chunk);
    MicroBatchRun& run = micro_batch(index);
    for (const int edge : p_.chain_.needs[at]) {
      run.receive(p_.chain_.edges[static_cast<std::size_t>(edge)], messages_.take({index, edge, false}));
    }
    run.forward(chunk);
    if (gradients_ != nullptr) return;
    if (p_.chain_.chunks[at].is_head_input) add_losses(index, run.head_input(chunk));
    if (chunk == last_uses_.last_chunk) retire(index, p_.chain_.gives[at].size());
  }

  void add_losses(int index, const Tensor& hidden) {
    losses_.push_back(head_losses(p_.model_, hidden, batches_[static_cast<std::size_t>(index)].targets, p_.tensor_));
  }

  void backward(int index, int chunk) {
    const auto at = static_cast<std::size_t>(chunk);
    MicroBatchRun& run = micro_batch(index);
    for (const int edge : p_.chain_.backward_needs[at]) {
      run.receive_gradient(p_.chain_.edges[static_cast<std::size_t>(edge)], messages_.take({index, edge, true}));
    }
    if (p_.chain_.chunks[at].is_head_input) {
      HeadResult head =
          head_loss_and_gradient(p_.model_, run.head_input(chunk), batches_[static_cast<std::size_t>(index)].targets,
                                 grad_scale_, *gradients_, p_.tensor_);
      losses_.push_back(std::move(head.losses));
      run.add_output_gradient(chunk, std::move(head.grad_hidden));
      if (complete_) count_down(head_part());
    }
    run.backward(chunk, *gradients_);
    if (chunk == last_uses_.first_gradient_chunk) retire(index, p_.chain_.backward_gives[at].size());
  }

  // The micro-batch's last chunk here has run; it ends once what that chunk completed has been sent.
  void retire(int index, std::size_t sends_left) {
    Running& running = running_.at(index);
    running.has_run = true;
    running.sends_left = sends_left;
    end_if_sent(index);
  }

  void end_if_sent(int index) {
    Running& running = running_.at(index);
    if (!running.has_run || running.sends_left > 0) return;
    running.run.check_finished();
    p_.tally_ = running.run.tally();
    running_.erase(index);
  }

  void send(const MessageKey& key) {
    const Edge& edge = p_.chain_.edges[static_cast<std::size_t>(key.edge)];
    Running& running = running_.at(key.micro_batch);
    messages_.send(key, key.gradient ? running.run.gradient_to_send(edge) : running.run.to_send(edge));
    if (!running.has_run) return;
    --running.sends_left;
    end_if_sent(key.micro_batch);
  }

  std::vector<Tensor> buffers(const MessageKey& key) const {
    const Edge& edge = p_.chain_.edges[static_cast<std::size_t>(key.edge)];
    const ModelConfig& config = p_.model_.config();
    const std::int64_t rows = p_.options_.sequences * p_.options_.positions;
    if (edge.kind == EdgeKind::kHidden) {
      const std::int64_t own_rows = p_.tensor_ == nullptr ? rows : p_.tensor_->own_rows(rows);
      return {Tensor::empty(p_.model_.allocator(), {own_rows, config.hidden}, p_.model_.dtype())};
    }
    const Shape shape = {p_.options_.sequences, p_.options_.positions,
                         p_.model_.shard().kv_heads(config).size() * config.head_dim};
    const DType dtype = key.gradient ? DType::kF32 : p_.model_.dtype();
    std::vector<Tensor> tensors;
    for (int i = 0; i < (key.gradient ? edge.gradient_tensors() : edge.tensors()); ++i) {
      tensors.push_back(Tensor::empty(p_.model_.allocator(), shape, dtype));
    }
    return tensors;
  }

  Pipeline& p_;
  std::span<const TokenBatch> batches_;
  float grad_scale_;
  ModelGradients* gradients_;
  PartComplete complete_;
  std::map<int, std::int64_t> runs_left_;  // by part
  LastUses last_uses_;
  const Schedule& schedule_;
  EdgeMessages messages_;
  std::map<int, Running> running_;
  std::vector<Tensor> losses_;  // of micro-batches; read at the end, so that the host runs ahead of the device
};

Pipeline::Pipeline(const Model& model, Communicator& ranks, TensorGroup* tensor, PipelineOptions options)
    : model_(model),
      ranks_(ranks),
      tensor_(tensor),
      options_(std::move(options)),
      plan_(make_iteration_plan(model.config().kv_map, options_.passes, options_.mode, options_.positions)),
      rope_(make_rope_table(model.config(), options_.positions, model.allocator())),
      chain_(make_chunk_chain(plan_, model.config().kv_map, options_.layout)) {
  if (options_.layout.ranks() != ranks_.size()) {
    fail("pipeline: a layout of {} ranks for {}", options_.layout.ranks(), ranks_.size());
  }
}

Pipeline::~Pipeline() = default;

const Schedule& Pipeline::schedule(int micro_batches) {
  const auto found = schedules_.find(micro_batches);
  if (found != schedules_.end()) return found->second;
  const SchedulePolicy policy = options_.mode == PlanMode::kTrain ? options_.policy : SchedulePolicy::kForwardOnly;
  Schedule schedule =
      make_schedule(chain_, micro_batches, policy,
                    options_.costs.has_value() ? *options_.costs : ScheduleCosts::by_layer_runs(chain_, plan_));
  check_schedule(chain_, micro_batches, policy, schedule);
  return schedules_.emplace(micro_batches, std::move(schedule)).first->second;
}

double Pipeline::train(std::span<const TokenBatch> batches, float grad_scale, ModelGradients& gradients,
                       PartComplete complete) {
  if (options_.mode != PlanMode::kTrain) fail("pipeline: made to evaluate, asked to train");
  return Step(*this, batches, grad_scale, &gradients, std::move(complete)).run();
}

double Pipeline::evaluate(std::span<const TokenBatch> batches) {
  if (options_.mode != PlanMode::kPrefill) fail("pipeline: made to train, asked to evaluate");
  return Step(*this, batches, 0, nullptr, {}).run();
}

}  // namespace kvloom
