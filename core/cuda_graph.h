// Work that a GPU does again and again, recorded once and given to it in one call from then on. Every build has it; in
// one without CUDA all of it throws Error naming KVLOOM_CUDA.
#pragma once

#include <functional>

#include "core/cuda_stream.h"

struct CUgraphExec_st;  // what cudaGraphExec_t points to

namespace kvloom {

class CudaGraph {
 public:
  // Records what `work` gives to the stream; none of it is done. Operations are recorded with the addresses and sizes
  // they have now, so what they read and write has to stay where it is while the graph lives (CudaArena). `work` may
  // not let the host wait for the stream; other threads go on undisturbed. Throws Error naming the call that CUDA
  // refused, or what `work` throws; then nothing is recorded and the stream is as before.
  CudaGraph(const CudaStream& stream, const std::function<void()>& work);
  ~CudaGraph();
  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;

  // Gives all of it to the stream, in the order recorded.
  void launch(const CudaStream& stream) const;

 private:
  CUgraphExec_st* graph_ = nullptr;
};

}  // namespace kvloom
