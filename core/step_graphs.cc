#include "core/step_graphs.h"

#include "kernels/error.h"

namespace kvloom {

StepGraphs::~StepGraphs() {
  // A graph that is still at work would lose its memory.
  try {
    allocator_.synchronize();
  } catch (const Error&) {  // the device has failed: nothing is at work
  }
}

Tensor StepGraphs::run(const DecodeShape& shape, const std::function<Tensor()>& work) {
  Step& step = steps_[shape];
  if (!step.done_once) {
    const CudaArena::Use use(arena_);
    Tensor result = work();
    step.done_once = true;
    return result;
  }
  if (step.graph == nullptr) record(shape, step, work);
  step.graph->launch(allocator_.stream());
  return step.result;
}

void StepGraphs::record(const DecodeShape& shape, Step& step, const std::function<Tensor()>& work) {
  const CudaArena::Use use(arena_);
  try {
    step.graph = std::make_unique<CudaGraph>(allocator_.stream(), [&] { step.result = work(); });
  } catch (const Error& error) {
    fail("recording a step of {} sequences and {} keys as a CUDA graph: {}; --cuda-graphs off does without",
         shape.sequences, shape.keys, error.what());
  }
  ++recorded_;
}

}  // namespace kvloom
