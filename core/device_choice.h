// Which device a run computes on, from what its user wrote.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "core/allocator.h"
#include "core/device.h"
#include "kernels/attention_choice.h"

namespace kvloom {

// "cpu", "cuda" (the first) or "cuda:1". Throws InputError naming what would be right.
Device parse_device(const std::string& text);

// "auto", "cudnn" or "kvloom". Throws InputError naming what would be right.
AttentionChoice parse_attention(const std::string& text);

struct AttentionSetting {
  AttentionChoice choice = AttentionChoice::kAuto;
  std::function<void(const std::string&)> log;  // hears once what a GPU's work goes to, and why; may be empty
};

// Memory there, with attention of its tensors as chosen. Throws InputError with the reason when this build or machine
// has no such device, or cannot have cuDNN's kernels where those are asked for.
std::unique_ptr<Allocator> make_allocator(const Device& device, const AttentionSetting& attention = {});

}  // namespace kvloom
