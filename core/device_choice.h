// Which device a run computes on, from what its user wrote.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "core/allocator.h"
#include "core/cuda_stream.h"
#include "core/device.h"
#include "kernels/attention_choice.h"
#include "kernels/matmul.h"

namespace kvloom {

// "cpu", "cuda" (the first) or "cuda:1". Throws InputError naming what would be right.
Device parse_device(const std::string& text);

// "auto", "cudnn" or "kvloom". Throws InputError naming what would be right.
AttentionChoice parse_attention(const std::string& text);

// "f32" or "tf32". Throws InputError naming what would be right.
MatmulPrecision parse_matmul_precision(const std::string& text);

// How a GPU computes.
struct GpuSetting {
  AttentionChoice attention = AttentionChoice::kAuto;
  MatmulPrecision matmul = MatmulPrecision::kF32;
  std::function<void(const std::string&)> log;  // hears once what the work goes to, and why; may be empty
};

// Throws InputError naming what would be right when kernels need more shared memory than blocks have there.
void require_fit(const Device& device, const GpuTraits& gpu);

// Memory there, whose tensors are computed on as chosen. A CPU has one way: tf32 is left aside there, and `log` hears
// of it. Throws InputError with the reason when this build or machine has no such device, when that one does not fit,
// or when it cannot have cuDNN's kernels where those are asked for.
std::unique_ptr<Allocator> make_allocator(const Device& device, const GpuSetting& gpu = {});

}  // namespace kvloom
