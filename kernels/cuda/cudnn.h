// cuDNN's backend API, opened when it is first asked for: linked with, it would have to be on every machine.
#pragma once

#include <cudnn_graph.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

namespace kvloom::cuda {

class Cudnn {
 public:
  // Throws Error with the loader's reason when there is no such library, or when it is too old for these graphs.
  Cudnn();
  Cudnn(const Cudnn&) = delete;
  Cudnn& operator=(const Cudnn&) = delete;

  std::size_t version() const { return get_version_(); }  // 91900: 9.19.0

  // Throws Error naming the call, cuDNN's status and its own words about it unless `status` is success.
  void check(cudnnStatus_t status, std::string_view call) const;

  // The library's functions, by its names without "cudnn".
  decltype(&::cudnnCreate) Create;
  decltype(&::cudnnDestroy) Destroy;
  decltype(&::cudnnSetStream) SetStream;
  decltype(&::cudnnBackendCreateDescriptor) BackendCreateDescriptor;
  decltype(&::cudnnBackendDestroyDescriptor) BackendDestroyDescriptor;
  decltype(&::cudnnBackendSetAttribute) BackendSetAttribute;
  decltype(&::cudnnBackendGetAttribute) BackendGetAttribute;
  decltype(&::cudnnBackendFinalize) BackendFinalize;
  decltype(&::cudnnBackendExecute) BackendExecute;

 private:
  template <typename Function>
  void find(Function& function, const char* name);

  void* library_ = nullptr;
  decltype(&::cudnnGetVersion) get_version_;
  decltype(&::cudnnGetErrorString) error_string_;
  decltype(&::cudnnGetLastErrorString) last_error_string_;
};

// One of the backend's objects, freed with its holder. `what` names it in messages.
class CudnnDescriptor {
 public:
  CudnnDescriptor(const Cudnn& cudnn, cudnnBackendDescriptorType_t type, std::string_view what);
  ~CudnnDescriptor();
  CudnnDescriptor(CudnnDescriptor&& other) noexcept
      : cudnn_(other.cudnn_), what_(other.what_), descriptor_(std::exchange(other.descriptor_, nullptr)) {}
  CudnnDescriptor& operator=(CudnnDescriptor&&) = delete;

  cudnnBackendDescriptor_t get() const { return descriptor_; }

  template <typename T>
  void set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, std::span<const T> values) {
    set_raw(name, type, std::ssize(values), values.data());
  }
  template <typename T>
  void set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, const T& value) {
    set_raw(name, type, 1, &value);
  }
  void set(cudnnBackendAttributeName_t name, const CudnnDescriptor& other) {
    set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, other.get());
  }
  // How many there are of it, of which the first values.size() are written there.
  template <typename T>
  std::int64_t read(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, std::span<T> values) const {
    return read_raw(name, type, std::ssize(values), values.data());
  }

  // `finalize` throws Error with cuDNN's words; `try_finalize` says whether cuDNN takes it.
  void finalize();
  bool try_finalize() { return cudnn_->BackendFinalize(descriptor_) == CUDNN_STATUS_SUCCESS; }

 private:
  void set_raw(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, std::int64_t count,
               const void* values);
  std::int64_t read_raw(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, std::int64_t count,
                        void* values) const;

  const Cudnn* cudnn_;
  std::string_view what_;
  cudnnBackendDescriptor_t descriptor_ = nullptr;
};

// What plans are made for: the GPU of a handle, or one that is only described (cuDNN's device properties, as JSON), for
// which plans can be made and checked where there is none.
class CudnnTarget {
 public:
  // Throws Error with cuDNN's reason when the calling thread's GPU cannot be used.
  explicit CudnnTarget(const Cudnn& cudnn);
  CudnnTarget(const Cudnn& cudnn, std::string_view properties);
  ~CudnnTarget();
  CudnnTarget(const CudnnTarget&) = delete;
  CudnnTarget& operator=(const CudnnTarget&) = delete;

  const Cudnn& cudnn() const { return cudnn_; }
  cudnnHandle_t handle() const { return handle_; }  // null of one that is only described
  void name_in(CudnnDescriptor& descriptor, cudnnBackendAttributeName_t handle_name,
               cudnnBackendAttributeName_t properties_name) const;

 private:
  const Cudnn& cudnn_;
  cudnnHandle_t handle_ = nullptr;
  std::unique_ptr<CudnnDescriptor> properties_;
};

}  // namespace kvloom::cuda
