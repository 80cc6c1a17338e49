// Memory that stands for a GPU's: the host may not touch it but by copies, which shows every place that forgets.
#pragma once

#include <cstddef>

namespace kvloom::simt {

void* take_device_memory(std::size_t bytes);
void give_back_device_memory(void* block);
void spoil_device_memory(void* block);  // as it came
bool is_device_address(const void* address);

// The host's again to touch only by mistake: when no stream has work left.
void close_device_memory();

// While one lives, kernels and copies reach device memory, one at a time; once it is closed, a touch ends the process.
class DeviceMemoryAccess {
 public:
  DeviceMemoryAccess();
  ~DeviceMemoryAccess();
  DeviceMemoryAccess(const DeviceMemoryAccess&) = delete;
  DeviceMemoryAccess& operator=(const DeviceMemoryAccess&) = delete;
};

}  // namespace kvloom::simt
