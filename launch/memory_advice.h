// What to lower when memory runs out, in the words of the verb that was called.
#pragma once

#include <functional>
#include <string_view>

namespace kvloom {

inline constexpr std::string_view kTrainMemory =
    "train.micro_batch or model.context; train.recompute=FULL takes less too";
inline constexpr std::string_view kBenchTrainMemory = "--micro-batch or --context";
inline constexpr std::string_view kBenchMeshMemory = "--micro-batch or --context, or measure fewer --axes at once";
inline constexpr std::string_view kBenchDecodeMemory = "--batch or --prompt-tokens";
inline constexpr std::string_view kGenerateMemory =
    "the prompt or --max-new-tokens, with many prompts --max-sequences or --kv-memory; --precision bf16 takes less "
    "too";
inline constexpr std::string_view kEvalTasksMemory = "--batch-tokens; --precision bf16 takes less too";
inline constexpr std::string_view kEvalDataMemory = "--sequential takes less, and so does --precision bf16";

// Runs `work`. An OutOfMemory (core/out_of_memory.h) leaves it as an Error that says `what` to lower.
void with_memory_advice(std::string_view what, const std::function<void()>& work);

}  // namespace kvloom
