#include "kernels/cuda/cudnn.h"

#include <dlfcn.h>

#include <string>

#include "kernels/error.h"

namespace kvloom::cuda {
namespace {

// From here on masks may hold -infinity, and devices be described.
constexpr std::size_t kOldest = 91100;

}  // namespace

Cudnn::Cudnn() {
  const std::string name = fmt::format("libcudnn.so.{}", CUDNN_MAJOR);
  library_ = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);  // stays open, as cuBLASLt does
  if (library_ == nullptr) fail("cuDNN cannot be opened: {}", dlerror());
  find(get_version_, "cudnnGetVersion");
  find(error_string_, "cudnnGetErrorString");
  find(last_error_string_, "cudnnGetLastErrorString");
  find(Create, "cudnnCreate");
  find(Destroy, "cudnnDestroy");
  find(SetStream, "cudnnSetStream");
  find(BackendCreateDescriptor, "cudnnBackendCreateDescriptor");
  find(BackendDestroyDescriptor, "cudnnBackendDestroyDescriptor");
  find(BackendSetAttribute, "cudnnBackendSetAttribute");
  find(BackendGetAttribute, "cudnnBackendGetAttribute");
  find(BackendFinalize, "cudnnBackendFinalize");
  find(BackendExecute, "cudnnBackendExecute");
  if (version() < kOldest) fail("cuDNN is of version {}; right is {} or later", version(), kOldest);
}

void Cudnn::check(cudnnStatus_t status, std::string_view call) const {
  if (status == CUDNN_STATUS_SUCCESS) return;
  std::string words(512, '\0');
  last_error_string_(words.data(), words.size());
  fail("{}: {}: {}", call, error_string_(status), words.c_str());
}

template <typename Function>
void Cudnn::find(Function& function, const char* name) {
  function = reinterpret_cast<Function>(dlsym(library_, name));
  if (function == nullptr) fail("cuDNN has no {}", name);
}

CudnnDescriptor::CudnnDescriptor(const Cudnn& cudnn, cudnnBackendDescriptorType_t type, std::string_view what)
    : cudnn_(&cudnn), what_(what) {
  cudnn.check(cudnn.BackendCreateDescriptor(type, &descriptor_), what);
}

CudnnDescriptor::~CudnnDescriptor() {
  if (descriptor_ != nullptr) cudnn_->BackendDestroyDescriptor(descriptor_);
}

void CudnnDescriptor::finalize() { cudnn_->check(cudnn_->BackendFinalize(descriptor_), what_); }

void CudnnDescriptor::set_raw(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, std::int64_t count,
                              const void* values) {
  cudnn_->check(cudnn_->BackendSetAttribute(descriptor_, name, type, count, values), what_);
}

std::int64_t CudnnDescriptor::read_raw(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                                       std::int64_t count, void* values) const {
  std::int64_t there = 0;
  cudnn_->check(cudnn_->BackendGetAttribute(descriptor_, name, type, count, &there, values), what_);
  return there;
}

CudnnTarget::CudnnTarget(const Cudnn& cudnn) : cudnn_(cudnn) { cudnn.check(cudnn.Create(&handle_), "cudnnCreate"); }

CudnnTarget::CudnnTarget(const Cudnn& cudnn, std::string_view properties)
    : cudnn_(cudnn),
      properties_(std::make_unique<CudnnDescriptor>(cudnn, CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, "device properties")) {
  properties_->set(CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR,
                   std::span<const char>(properties.data(), properties.size()));
  properties_->finalize();
}

CudnnTarget::~CudnnTarget() {
  properties_.reset();
  if (handle_ != nullptr) cudnn_.Destroy(handle_);
}

void CudnnTarget::name_in(CudnnDescriptor& descriptor, cudnnBackendAttributeName_t handle_name,
                          cudnnBackendAttributeName_t properties_name) const {
  if (handle_ != nullptr) {
    descriptor.set(handle_name, CUDNN_TYPE_HANDLE, handle_);
  } else {
    descriptor.set(properties_name, *properties_);
  }
}

}  // namespace kvloom::cuda
