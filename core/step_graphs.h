// A step whose shape comes again and again, as one CUDA graph for each shape.
#pragma once

#include <compare>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>

#include "core/cuda_allocator.h"
#include "core/cuda_graph.h"
#include "core/tensor.h"

namespace kvloom {

// What the work of a decode step depends on, beside what lies in device memory.
struct DecodeShape {
  std::int64_t sequences;
  std::int64_t keys;  // the bound of what attention looks at
  auto operator<=>(const DecodeShape&) const = default;
};

class StepGraphs {
 public:
  // All work goes to the allocator's stream, and its tensors come from the allocator, which outlives this.
  explicit StepGraphs(CachingCudaAllocator& allocator) : allocator_(allocator), arena_(allocator) {}
  // Waits for the last step.
  ~StepGraphs();
  StepGraphs(const StepGraphs&) = delete;
  StepGraphs& operator=(const StepGraphs&) = delete;

  // Gives the device one step and returns its result: what `work` returned, as the device fills it; the next step,
  // of whatever shape, may overwrite it. `work` gives a step's work to the stream. It is called for the first step of a
  // shape, which leaves libraries with their plans and kernels loaded, and once more for the second, to be recorded;
  // from then on the record is launched. So it is to ask for the same every time, with all that differs between steps
  // in device memory of fixed addresses; it cannot let the host wait. Throws Error naming the call that CUDA refused.
  Tensor run(const DecodeShape& shape, const std::function<Tensor()>& work);

  // How many shapes are recorded.
  std::size_t recorded() const { return recorded_; }

 private:
  struct Step {
    bool done_once = false;
    std::unique_ptr<CudaGraph> graph;  // from the second on
    Tensor result;
  };

  void record(const DecodeShape& shape, Step& step, const std::function<Tensor()>& work);

  CachingCudaAllocator& allocator_;
  CudaArena arena_;  // all steps share it: they run one after the other
  std::map<DecodeShape, Step> steps_;
  std::size_t recorded_ = 0;
};

}  // namespace kvloom
