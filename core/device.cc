#include "core/device.h"

#include <fmt/format.h>

namespace kvloom {

std::string name_of(const Device& device) {
  return device.kind == Device::Kind::kCpu ? "cpu" : fmt::format("cuda:{}", device.index);
}

}  // namespace kvloom
