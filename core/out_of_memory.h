// What allocators throw when a device has no more memory.
#pragma once

#include "kernels/error.h"

namespace kvloom {

// The message ends with "lower what is worked on at once": who knows what that is may go on with it (with_memory_advice
// in launch/memory_advice.h).
class OutOfMemory : public Error {
 public:
  using Error::Error;
};

}  // namespace kvloom
