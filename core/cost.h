// What a plan costs in floating-point operations, counted run by run: the measure behind predicted times and MFU.
#pragma once

#include <cstdint>

#include "core/config.h"
#include "core/iteration_plan.h"
#include "kernels/dtype.h"

namespace kvloom {

struct Flops {
  double forward = 0;
  double backward = 0;

  double total() const { return forward + backward; }
};

// Of one layer in one pass over one sequence of `positions` tokens, of which `asked` (0: all) go to the end; `backward`
// is that of a run that keeps gradient. A multiply-add is two operations; attention counts visible pairs only; backward
// counts two products for each of forward, five for attention's two. Norms, rotations and the optimizer are left out,
// as in model FLOP utilisation (Chowdhery et al. 2022, appendix B).
Flops layer_run_flops(const ModelConfig& config, const LayerRun& run, std::int64_t positions, std::int64_t asked = 0);

// The sum over the plan's runs; backward of those that keep gradient.
Flops plan_flops(const ModelConfig& config, const IterationPlan& plan, std::int64_t positions, std::int64_t asked = 0);

// Of the head, for `positions` logits; backward only when training.
Flops head_flops(const ModelConfig& config, std::int64_t positions, PlanMode mode);

// What a decode step asks of memory and arithmetic. Of what a cache keeps, memory sees less.
struct DecodeCost {
  double weight_bytes = 0;  // every weight once; of an embedding that is not the head as well, the tokens' rows alone
  double key_value_bytes = 0;  // what each layer's attention reads of its source: readers of one source read it anew
  double flops = 0;            // products and attention, counted as above

  double bytes() const { return weight_bytes + key_value_bytes; }
};

// Of a step with one token for each of `sequences`, computed in `dtype`: the mean over `steps` of them, the first of
// which stands at `position`.
DecodeCost decode_cost(const ModelConfig& config, DType dtype, std::int64_t sequences, std::int64_t position,
                       std::int64_t steps = 1);

}  // namespace kvloom
