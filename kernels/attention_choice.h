// Whose attention kernels a GPU's work goes to.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace kvloom {

enum class AttentionChoice : std::uint8_t {
  kAuto,    // kvloom's own: cuDNN's have not been proved on a GPU yet
  kCudnn,   // cuDNN's where they take the shape, kvloom's own elsewhere
  kKvloom,  // kvloom's own
};

namespace cuda {
class Queue;

// From now on. `log` hears, once each, what was chosen and why a kind of shape goes another way; it outlives the queue.
// Throws InputError with the reason when cuDNN is asked for and cannot be had.
void choose_attention(Queue& queue, AttentionChoice choice, std::function<void(const std::string&)> log);
}  // namespace cuda

}  // namespace kvloom
