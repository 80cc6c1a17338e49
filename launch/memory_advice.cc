#include "launch/memory_advice.h"

#include "core/out_of_memory.h"

namespace kvloom {

void with_memory_advice(std::string_view what, const std::function<void()>& work) {
  try {
    work();
  } catch (const OutOfMemory& error) {
    fail("{}: {}", error.what(), what);
  }
}

}  // namespace kvloom
