// Recording and launching of graphs, as CUDA's runtime has it: what a call may not do meanwhile ends the recording.
#include "tests/support/simt/capture.h"

#include <cuda_runtime_api.h>

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "tests/support/simt/capture_state.h"
#include "tests/support/simt/device_memory.h"
#include "tests/support/simt/streams.h"

namespace kvloom::simt {
namespace {

using Work = std::vector<std::function<void()>>;

struct Recording {
  cudaStream_t stream;
  Work work;
  bool broken = false;
};

std::optional<Recording> recording;
thread_local cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;  // apart from what the thread records

Work* work_of(void* handle) { return static_cast<Work*>(handle); }

}  // namespace

bool is_recording(cudaStream_t stream) { return recording.has_value() && recording->stream == stream; }

void give(cudaStream_t stream, std::function<void()> work) {
  if (!is_recording(stream)) return enqueue(stream, std::move(work));
  recording->work.push_back(std::move(work));
}

cudaError_t refuse_while_recording(Refused what) {
  if (!recording.has_value()) return cudaSuccess;
  if (what == Refused::kUnlessRelaxed && mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
  recording->broken = true;
  return cudaErrorStreamCaptureUnsupported;
}

cudaError_t refuse_host_memory(cudaStream_t stream, const void* to, const void* from) {
  if (!is_recording(stream) || (is_device_address(to) && is_device_address(from))) return cudaSuccess;
  recording->broken = true;
  return cudaErrorStreamCaptureUnsupported;
}

}  // namespace kvloom::simt

using namespace kvloom::simt;  // NOLINT: these are CUDA's functions

extern "C" {

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (recording.has_value()) return cudaErrorIllegalState;
  recording.emplace(Recording{.stream = stream, .work = {}});
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  if (!is_recording(stream)) return cudaErrorIllegalState;
  const std::optional<Recording> made = std::exchange(recording, std::nullopt);
  if (made->broken) return cudaErrorStreamCaptureInvalidated;
  *graph = reinterpret_cast<cudaGraph_t>(new Work(made->work));
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = is_recording(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* other) {
  std::swap(mode, *other);
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* launchable, cudaGraph_t graph, unsigned long long) {
  *launchable = reinterpret_cast<cudaGraphExec_t>(new Work(*work_of(graph)));
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete work_of(graph);
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t launchable) {
  delete work_of(launchable);
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t launchable, cudaStream_t stream) {
  for (const auto& work : *work_of(launchable)) give(stream, work);
  return cudaSuccess;
}

}  // extern "C"
