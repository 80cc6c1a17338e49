// Attention by cuDNN's fused kernels. An upward read is plain causal attention of the queries from 1 on over the keys
// to the one before the last (DESIGN 7); its position 0 is written as zero here.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "kernels/attention.h"
#include "kernels/cuda/queue.h"

namespace kvloom::cuda {

// Plans are kept by shape. The first result of each is held against kvloom's own kernels, on the data at hand: Error
// when they are further apart than bf16 explains.
class CudnnAttention {
 public:
  // On the queue's device. Throws Error with the reason when cuDNN cannot be had.
  CudnnAttention(Queue& queue, std::function<void(const std::string&)> log);
  ~CudnnAttention();

  // Strides written out. False when cuDNN does not take the operation, and then nothing has been done.
  bool run(const AttentionForward& op, Queue& queue);
  bool run(const AttentionBackward& op, Queue& queue);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace kvloom::cuda
