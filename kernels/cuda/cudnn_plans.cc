#include "kernels/cuda/cudnn_plans.h"

#include <utility>

#include "kernels/cuda/cudnn_attention_graphs.h"

namespace kvloom::cuda {

struct CudnnPlans::Library {
  Library() : target(cudnn) {}

  Cudnn cudnn;
  CudnnTarget target;
};

CudnnPlans::CudnnPlans(Queue& queue) {
  queue.enter();
  library_ = std::make_unique<Library>();
  library_->cudnn.check(library_->cudnn.SetStream(library_->target.handle(), queue.stream()), "cudnnSetStream");
}

CudnnPlans::~CudnnPlans() = default;

std::size_t CudnnPlans::version() const { return library_->cudnn.version(); }

std::optional<CudnnAttentionPlan<CudnnForwardPlaces>> CudnnPlans::forward(const CudnnAttentionShape& shape) {
  std::optional<CudnnForward> made = plan_forward(library_->target, shape);
  if (!made.has_value()) return std::nullopt;
  const auto graph = std::make_shared<CudnnForward>(std::move(*made));
  return CudnnAttentionPlan<CudnnForwardPlaces>{graph->plan.workspace_bytes(),
                                                [graph](const CudnnForwardPlaces& at, void* workspace) {
                                                  graph->plan.run({{graph->query, at.query},
                                                                   {graph->key, at.key},
                                                                   {graph->value, at.value},
                                                                   {graph->output, at.output},
                                                                   {graph->statistics, at.statistics}},
                                                                  workspace);
                                                }};
}

std::optional<CudnnAttentionPlan<CudnnBackwardPlaces>> CudnnPlans::backward(const CudnnAttentionShape& shape) {
  std::optional<CudnnBackward> made = plan_backward(library_->target, shape);
  if (!made.has_value()) return std::nullopt;
  const auto graph = std::make_shared<CudnnBackward>(std::move(*made));
  return CudnnAttentionPlan<CudnnBackwardPlaces>{graph->plan.workspace_bytes(),
                                                 [graph](const CudnnBackwardPlaces& at, void* workspace) {
                                                   graph->plan.run({{graph->query, at.query},
                                                                    {graph->key, at.key},
                                                                    {graph->value, at.value},
                                                                    {graph->output, at.output},
                                                                    {graph->statistics, at.statistics},
                                                                    {graph->grad_output, at.grad_output},
                                                                    {graph->delta, at.delta},
                                                                    {graph->grad_query, at.grad_query},
                                                                    {graph->grad_key, at.grad_key},
                                                                    {graph->grad_value, at.grad_value}},
                                                                   workspace);
                                                 }};
}

}  // namespace kvloom::cuda
