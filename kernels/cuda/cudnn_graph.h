// Graphs of cuDNN operations over tensors of four axes, and the plans that cuDNN makes of them.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "kernels/cuda/cudnn.h"

namespace kvloom::cuda {

using CudnnAxes = std::array<std::int64_t, 4>;

CudnnAxes row_major(const CudnnAxes& sizes);  // strides
CudnnAxes transposed(const CudnnAxes& axes);  // the last two exchanged

// Which tensor of a graph: what it is known by when the plan is run.
using CudnnTensor = std::int64_t;

// A plan that cuDNN made of a graph, and the numbers that the graph holds. The target outlives it.
class CudnnPlan {
 public:
  CudnnPlan(const CudnnTarget& target, CudnnDescriptor plan, std::map<CudnnTensor, float> scalars);

  std::size_t workspace_bytes() const { return workspace_bytes_; }
  // Gives the work to the handle's stream. `tensors`: the device memory of every tensor that is not virtual.
  void run(const std::map<CudnnTensor, void*>& tensors, void* workspace) const;

 private:
  const CudnnTarget& target_;
  CudnnDescriptor plan_;
  std::map<CudnnTensor, float> scalars_;
  std::size_t workspace_bytes_ = 0;
};

class CudnnGraph {
 public:
  explicit CudnnGraph(const Cudnn& cudnn) : cudnn_(cudnn) {}

  // In memory that is given when the plan is run, at multiples of 16 bytes.
  CudnnTensor tensor(const CudnnAxes& sizes, const CudnnAxes& strides, cudnnDataType_t type);
  // Never in memory.
  CudnnTensor between(const CudnnAxes& sizes, const CudnnAxes& strides, cudnnDataType_t type = CUDNN_DATA_FLOAT);
  CudnnTensor between(const CudnnAxes& sizes, cudnnDataType_t type = CUDNN_DATA_FLOAT) {
    return between(sizes, row_major(sizes), type);
  }
  // One f32.
  CudnnTensor scalar(float value);

  // Operations: output (=). They compute in f32, or as `compute` says.
  void matmul(CudnnTensor a, CudnnTensor b, CudnnTensor output);
  void reduce(cudnnReduceTensorOp_t how, CudnnTensor input, CudnnTensor output);
  void reshape(CudnnTensor input, CudnnTensor output);
  void pointwise(cudnnPointwiseMode_t mode, std::initializer_list<CudnnTensor> inputs, CudnnTensor output,
                 cudnnDataType_t compute = CUDNN_DATA_FLOAT);
  // i32: each element's place along an axis.
  void index(CudnnTensor like, std::int64_t axis, CudnnTensor output);

  // The first plan of cuDNN's heuristics that the target can run and that gives equal bits every time; none when there
  // is no such plan.
  std::optional<CudnnPlan> plan(const CudnnTarget& target);

 private:
  CudnnTensor add_tensor(const CudnnAxes& sizes, const CudnnAxes& strides, cudnnDataType_t type, bool is_virtual,
                         bool is_by_value);
  CudnnDescriptor& add_operation(cudnnBackendDescriptorType_t type, std::string_view what);
  void set_tensor(CudnnDescriptor& operation, cudnnBackendAttributeName_t name, CudnnTensor tensor);
  CudnnDescriptor operation_graph(const CudnnTarget& target) const;

  const Cudnn& cudnn_;
  std::vector<CudnnDescriptor> tensors_;  // tensor i is number i + 1
  std::vector<CudnnDescriptor> settings_;
  std::vector<CudnnDescriptor> operations_;
  std::map<CudnnTensor, float> scalars_;
};

}  // namespace kvloom::cuda
