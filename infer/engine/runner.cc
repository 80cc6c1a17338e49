#include "infer/engine/runner.h"

namespace kvloom {

Runner::Runner(const InferenceModel& model, const RunnerOptions& options)
    : pages_(model.config(), options.pages, model.allocator()),
      forward_(model, pages_, options.forward),
      tables_(pages_.groups().size(), options.slots,
              (options.forward.context + options.pages.page_size - 1) / options.pages.page_size) {}

StepOutcome Runner::execute(const StepPlan& plan) {
  for (const PageSwap& swap : plan.swap_out) pages_.swap_out(swap.group, swap.page, swap.place);
  for (const PageSwap& swap : plan.swap_in) pages_.swap_in(swap.group, swap.page, swap.place);
  for (const PageCopy& copy : plan.copies) pages_.copy(copy.group, copy.from, copy.to);
  for (const PageAssignment& page : plan.pages) tables_.set(page.slot, page.group, page.index, page.page);
  return forward_.run(plan.rows, tables_);
}

}  // namespace kvloom
