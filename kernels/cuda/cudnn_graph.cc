#include "kernels/cuda/cudnn_graph.h"

#include <algorithm>

namespace kvloom::cuda {
namespace {

constexpr std::int64_t kAlignment = 16;
constexpr std::size_t kMostPlans = 16;  // that heuristics are asked for

bool is_deterministic(const Cudnn& cudnn, const CudnnDescriptor& configuration) {
  CudnnDescriptor engine(cudnn, CUDNN_BACKEND_ENGINE_DESCRIPTOR, "engine");
  std::array<cudnnBackendDescriptor_t, 1> place = {engine.get()};
  configuration.read<cudnnBackendDescriptor_t>(CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, place);
  std::array<cudnnBackendNumericalNote_t, CUDNN_NUMERICAL_NOTE_TYPE_COUNT> notes{};
  const std::int64_t count =
      engine.read<cudnnBackendNumericalNote_t>(CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE, notes);
  const auto end = notes.begin() + std::min<std::int64_t>(count, std::ssize(notes));
  return std::find(notes.begin(), end, CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC) == end;
}

// What heuristics propose, the best first.
std::vector<CudnnDescriptor> configurations_for(const CudnnTarget& target, const CudnnDescriptor& graph) {
  const Cudnn& cudnn = target.cudnn();
  CudnnDescriptor heuristics(cudnn, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, "heuristics");
  heuristics.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
  heuristics.set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, CUDNN_HEUR_MODE_A);
  if (target.handle() == nullptr) target.name_in(heuristics, {}, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP);
  if (!heuristics.try_finalize()) return {};
  std::vector<CudnnDescriptor> found;
  std::vector<cudnnBackendDescriptor_t> places;
  for (std::size_t i = 0; i < kMostPlans; ++i) {
    found.emplace_back(cudnn, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, "engine configuration");
    places.push_back(found.back().get());
  }
  const std::int64_t count =
      heuristics.read<cudnnBackendDescriptor_t>(CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, places);
  while (std::ssize(found) > count) found.pop_back();
  return found;
}

}  // namespace

CudnnAxes row_major(const CudnnAxes& sizes) {
  return {sizes[1] * sizes[2] * sizes[3], sizes[2] * sizes[3], sizes[3], 1};
}

CudnnAxes transposed(const CudnnAxes& axes) { return {axes[0], axes[1], axes[3], axes[2]}; }

CudnnPlan::CudnnPlan(const CudnnTarget& target, CudnnDescriptor plan, std::map<CudnnTensor, float> scalars)
    : target_(target), plan_(std::move(plan)), scalars_(std::move(scalars)) {
  std::array<std::int64_t, 1> bytes{};
  plan_.read<std::int64_t>(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, bytes);
  workspace_bytes_ = static_cast<std::size_t>(bytes[0]);
}

void CudnnPlan::run(const std::map<CudnnTensor, void*>& tensors, void* workspace) const {
  std::vector<std::int64_t> numbers;
  std::vector<void*> pointers;
  for (const auto& [number, pointer] : tensors) {
    numbers.push_back(number);
    pointers.push_back(pointer);
  }
  std::map<CudnnTensor, float> values = scalars_;  // read by the host before Execute returns
  for (auto& [number, value] : values) {
    numbers.push_back(number);
    pointers.push_back(&value);
  }
  CudnnDescriptor pack(target_.cudnn(), CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, "variant pack");
  pack.set<void*>(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, std::span<void* const>(pointers));
  pack.set<std::int64_t>(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, std::span<const std::int64_t>(numbers));
  pack.set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, workspace);
  pack.finalize();
  target_.cudnn().check(target_.cudnn().BackendExecute(target_.handle(), plan_.get(), pack.get()),
                        "cudnnBackendExecute");
}

CudnnTensor CudnnGraph::add_tensor(const CudnnAxes& sizes, const CudnnAxes& strides, cudnnDataType_t type,
                                   bool is_virtual, bool is_by_value) {
  CudnnDescriptor& tensor = tensors_.emplace_back(cudnn_, CUDNN_BACKEND_TENSOR_DESCRIPTOR, "tensor");
  const std::int64_t number = std::ssize(tensors_);
  tensor.set(CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, type);
  tensor.set<std::int64_t>(CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, std::span<const std::int64_t>(sizes));
  tensor.set<std::int64_t>(CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, std::span<const std::int64_t>(strides));
  tensor.set(CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, number);
  tensor.set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, kAlignment);
  tensor.set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, is_virtual);
  tensor.set(CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, is_by_value);
  tensor.finalize();
  return number;
}

CudnnTensor CudnnGraph::tensor(const CudnnAxes& sizes, const CudnnAxes& strides, cudnnDataType_t type) {
  return add_tensor(sizes, strides, type, false, false);
}

CudnnTensor CudnnGraph::between(const CudnnAxes& sizes, const CudnnAxes& strides, cudnnDataType_t type) {
  return add_tensor(sizes, strides, type, true, false);
}

CudnnTensor CudnnGraph::scalar(float value) {
  const CudnnTensor number = add_tensor({1, 1, 1, 1}, {1, 1, 1, 1}, CUDNN_DATA_FLOAT, false, true);
  scalars_.emplace(number, value);
  return number;
}

CudnnDescriptor& CudnnGraph::add_operation(cudnnBackendDescriptorType_t type, std::string_view what) {
  return operations_.emplace_back(cudnn_, type, what);
}

void CudnnGraph::set_tensor(CudnnDescriptor& operation, cudnnBackendAttributeName_t name, CudnnTensor tensor) {
  operation.set(name, tensors_.at(static_cast<std::size_t>(tensor - 1)));
}

void CudnnGraph::matmul(CudnnTensor a, CudnnTensor b, CudnnTensor output) {
  CudnnDescriptor& setting = settings_.emplace_back(cudnn_, CUDNN_BACKEND_MATMUL_DESCRIPTOR, "matmul");
  setting.set(CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT);
  setting.finalize();
  CudnnDescriptor& operation = add_operation(CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR, "matmul operation");
  set_tensor(operation, CUDNN_ATTR_OPERATION_MATMUL_ADESC, a);
  set_tensor(operation, CUDNN_ATTR_OPERATION_MATMUL_BDESC, b);
  set_tensor(operation, CUDNN_ATTR_OPERATION_MATMUL_CDESC, output);
  operation.set(CUDNN_ATTR_OPERATION_MATMUL_DESC, setting);
  operation.finalize();
}

void CudnnGraph::reduce(cudnnReduceTensorOp_t how, CudnnTensor input, CudnnTensor output) {
  CudnnDescriptor& setting = settings_.emplace_back(cudnn_, CUDNN_BACKEND_REDUCTION_DESCRIPTOR, "reduction");
  setting.set(CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT);
  setting.set(CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, how);
  setting.finalize();
  CudnnDescriptor& operation = add_operation(CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR, "reduction operation");
  set_tensor(operation, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, input);
  set_tensor(operation, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, output);
  operation.set(CUDNN_ATTR_OPERATION_REDUCTION_DESC, setting);
  operation.finalize();
}

void CudnnGraph::reshape(CudnnTensor input, CudnnTensor output) {
  CudnnDescriptor& operation = add_operation(CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR, "reshape operation");
  set_tensor(operation, CUDNN_ATTR_OPERATION_RESHAPE_XDESC, input);
  set_tensor(operation, CUDNN_ATTR_OPERATION_RESHAPE_YDESC, output);
  operation.finalize();
}

void CudnnGraph::pointwise(cudnnPointwiseMode_t mode, std::initializer_list<CudnnTensor> inputs, CudnnTensor output,
                           cudnnDataType_t compute) {
  CudnnDescriptor& setting = settings_.emplace_back(cudnn_, CUDNN_BACKEND_POINTWISE_DESCRIPTOR, "pointwise");
  setting.set(CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, mode);
  setting.set(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, compute);
  setting.finalize();
  CudnnDescriptor& operation = add_operation(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR, "pointwise operation");
  operation.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, setting);
  constexpr std::array kPlaces = {CUDNN_ATTR_OPERATION_POINTWISE_XDESC, CUDNN_ATTR_OPERATION_POINTWISE_BDESC,
                                  CUDNN_ATTR_OPERATION_POINTWISE_TDESC};
  for (std::size_t i = 0; i < inputs.size(); ++i) set_tensor(operation, kPlaces.at(i), inputs.begin()[i]);
  set_tensor(operation, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, output);
  operation.finalize();
}

void CudnnGraph::index(CudnnTensor like, std::int64_t axis, CudnnTensor output) {
  CudnnDescriptor& setting = settings_.emplace_back(cudnn_, CUDNN_BACKEND_POINTWISE_DESCRIPTOR, "index");
  setting.set(CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, CUDNN_POINTWISE_GEN_INDEX);
  setting.set(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT);
  setting.set(CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, axis);
  setting.finalize();
  CudnnDescriptor& operation = add_operation(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR, "index operation");
  operation.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, setting);
  set_tensor(operation, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, like);
  set_tensor(operation, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, output);
  operation.finalize();
}

CudnnDescriptor CudnnGraph::operation_graph(const CudnnTarget& target) const {
  CudnnDescriptor graph(cudnn_, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR, "operation graph");
  std::vector<cudnnBackendDescriptor_t> all;
  for (const CudnnDescriptor& operation : operations_) all.push_back(operation.get());
  graph.set<cudnnBackendDescriptor_t>(CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                      std::span<const cudnnBackendDescriptor_t>(all));
  if (target.handle() != nullptr) target.name_in(graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, {});
  graph.finalize();
  return graph;
}

std::optional<CudnnPlan> CudnnGraph::plan(const CudnnTarget& target) {
  const CudnnDescriptor graph = operation_graph(target);
  for (const CudnnDescriptor& configuration : configurations_for(target, graph)) {
    if (!is_deterministic(cudnn_, configuration)) continue;
    CudnnDescriptor plan(cudnn_, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, "execution plan");
    plan.set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, configuration);
    target.name_in(plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP);
    if (plan.try_finalize()) return CudnnPlan(target, std::move(plan), scalars_);
  }
  return std::nullopt;
}

}  // namespace kvloom::cuda
