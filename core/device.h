// Where memory lives and work runs.
#pragma once

#include <cstdint>
#include <string>

namespace kvloom {

struct Device {
  enum class Kind : std::uint8_t { kCpu, kCuda };
  Kind kind = Kind::kCpu;
  int index = 0;

  friend bool operator==(const Device&, const Device&) = default;
};

// "cpu", "cuda:0".
std::string name_of(const Device& device);

}  // namespace kvloom
