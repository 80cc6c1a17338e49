// A step's plan as it travels between ranks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "infer/engine/step_plan.h"

namespace kvloom {

// The plan as bytes and back. `parse_step_plan` throws Error for bytes that are no plan.
std::vector<std::byte> to_bytes(const StepPlan& plan);
StepPlan parse_step_plan(std::span<const std::byte> bytes);

// The same for equal plans, on every rank.
std::uint64_t digest(const StepPlan& plan);

}  // namespace kvloom
