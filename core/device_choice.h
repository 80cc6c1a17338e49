// Which device a run computes on, from what its user wrote.
#pragma once

#include <memory>
#include <string>

#include "core/allocator.h"
#include "core/device.h"

namespace kvloom {

// "cpu", "cuda" (the first) or "cuda:1". Throws InputError naming what would be right.
Device parse_device(const std::string& text);

// Memory there. Throws InputError with the reason when this build or machine has no such device.
std::unique_ptr<Allocator> make_allocator(const Device& device);

}  // namespace kvloom
