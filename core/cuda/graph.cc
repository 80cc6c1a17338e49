#include "core/cuda_graph.h"

#include <cuda_runtime_api.h>

#include <memory>

#include "kernels/cuda/check.h"

namespace kvloom {
namespace {

struct DestroyGraph {
  void operator()(CUgraph_st* graph) const { cudaGraphDestroy(graph); }
};
using Graph = std::unique_ptr<CUgraph_st, DestroyGraph>;

// A stream records instead of working while one lives.
class Capture {
 public:
  // Of this thread's calls alone: what else the program does is no part of it, and is not refused for its sake.
  explicit Capture(const CudaStream& stream) : stream_(stream) {
    check_cuda(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
  }
  ~Capture() {
    if (ended_) return;
    cudaGraph_t graph = nullptr;
    cudaStreamEndCapture(stream_.get(), &graph);
    if (graph != nullptr) cudaGraphDestroy(graph);
    cudaGetLastError();
  }
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

  Graph end() {
    ended_ = true;
    cudaGraph_t graph = nullptr;
    const cudaError_t code = cudaStreamEndCapture(stream_.get(), &graph);
    Graph result(graph);
    check_cuda(code, "cudaStreamEndCapture");
    return result;
  }

 private:
  const CudaStream& stream_;
  bool ended_ = false;
};

}  // namespace

CudaGraph::CudaGraph(const CudaStream& stream, const std::function<void()>& work) {
  enter_cuda_device(stream.device());
  Capture capture(stream);
  work();
  const Graph graph = capture.end();
  check_cuda(cudaGraphInstantiate(&graph_, graph.get(), 0), "cudaGraphInstantiate");
}

CudaGraph::~CudaGraph() { cudaGraphExecDestroy(graph_); }

void CudaGraph::launch(const CudaStream& stream) const {
  enter_cuda_device(stream.device());
  check_cuda(cudaGraphLaunch(graph_, stream.get()), "cudaGraphLaunch");
}

}  // namespace kvloom
