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

// Memory there. Throws InputError with the reason when this build or machine has no such device.
std::unique_ptr<Allocator> make_allocator(const Device& device);

// "auto", "cudnn" or "kvloom". Throws InputError naming what would be right.
AttentionChoice parse_attention(const std::string& text);

// Whose attention kernels work with this memory's tensors goes to: see kernels/attention_choice.h. On the CPU there is
// but one, and asking for cuDNN's an InputError.
void choose_attention(Allocator& allocator, AttentionChoice choice, std::function<void(const std::string&)> log);

}  // namespace kvloom
