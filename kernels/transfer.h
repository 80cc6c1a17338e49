// Bytes between the host and a device, and zeros. On the CPU these are memcpy and memset.
#pragma once

#include <cstddef>

namespace kvloom {

// to[i] = from[i], bytes, between the host and the queue's device or within it. Where the host has a part in it, the
// host waits.
struct CopyBytes {
  void* to;
  const void* from;
  std::size_t bytes;
};

// All bytes = 0.
struct FillZero {
  void* data;
  std::size_t bytes;
};

namespace cuda {
class Queue;
void run(const CopyBytes& op, Queue& queue);
void run(const FillZero& op, Queue& queue);
}  // namespace cuda

}  // namespace kvloom
