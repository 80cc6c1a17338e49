// Where memory lives and work runs.
#pragma once

#include <cstdint>
#include <string>

namespace kvloom {

namespace cuda {
class Queue;
}

struct Device {
  enum class Kind : std::uint8_t { kCpu, kCuda };
  Kind kind = Kind::kCpu;
  int index = 0;
  cuda::Queue* queue = nullptr;  // where work on a GPU's tensors is put: that of the allocator they come from

  friend bool operator==(const Device&, const Device&) = default;
};

// "cpu", "cuda:0".
std::string name_of(const Device& device);

}  // namespace kvloom
