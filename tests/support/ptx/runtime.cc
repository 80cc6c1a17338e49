// How nvcc's host code registers kernels and starts them: here they are found by name in the PTX that nvcc made of the
// same files (KVLOOM_PTX_FILES), and carried out on the host. The rest of CUDA's runtime is support/simt's.
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <cstring>
#include <map>
#include <mutex>
#include <sstream>

#include "tests/support/ptx/machine.h"
#include "tests/support/simt/capture.h"
#include "tests/support/simt/device_memory.h"
#include "tests/support/simt/threads.h"

namespace {

using kvloom::ptx::Kernel;
using kvloom::ptx::Launch;

std::mutex registered_mutex;

struct Registered {
  std::string name;
  std::size_t dynamic_shared_limit = 0;  // 0: what is had unasked
};

std::map<const void*, Registered>& registered() {
  static std::map<const void*, Registered> functions;
  return functions;
}

const std::map<std::string, Kernel>& kernels() {
  static const std::map<std::string, Kernel> program = [] {
    std::vector<std::filesystem::path> files;
    std::istringstream list(KVLOOM_PTX_FILES);
    for (std::string file; std::getline(list, file, '|');) files.emplace_back(file);
    return kvloom::ptx::read_program(files);
  }();
  return program;
}

const Kernel& kernel_of(const Registered& function) {
  const auto found = kernels().find(function.name);
  if (found == kernels().end()) kvloom::ptx::stop("there is no PTX of " + function.name);
  return found->second;
}

std::vector<std::byte> packed(const Kernel& kernel, void** arguments) {
  std::vector<std::byte> bytes(kernel.parameter_bytes);
  for (std::size_t i = 0; i < kernel.parameters.size(); ++i) {
    const auto [offset, size] = kernel.parameters[i];
    std::memcpy(bytes.data() + offset, arguments[i], size);
  }
  return bytes;
}

cudaError_t start(const void* function, dim3 grid, dim3 block, void** arguments, std::size_t shared, cudaStream_t to) {
  Registered known;
  {
    const std::lock_guard lock(registered_mutex);
    known = registered().at(function);
  }
  const Kernel& kernel = kernel_of(known);
  if (grid.y != 1 || grid.z != 1 || block.y != 1 || block.z != 1 || grid.x == 0 || grid.x > 0x7fffffffu) {
    return cudaErrorInvalidConfiguration;
  }
  if (block.x > static_cast<unsigned>(kernel.most_threads)) return cudaErrorInvalidConfiguration;
  const std::size_t unasked = kvloom::simt::kPlainShared;
  if (shared > known.dynamic_shared_limit && kernel.shared_bytes + shared > unasked) return cudaErrorInvalidValue;
  Launch launch{grid.x, static_cast<int>(block.x), shared, packed(kernel, arguments)};
  kvloom::simt::give(to, [&kernel, launch = std::move(launch)] {
    const kvloom::simt::DeviceMemoryAccess access;
    kvloom::ptx::run_kernel(kernel, launch);
  });
  return cudaSuccess;
}

}  // namespace

extern "C" {

void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
  registered()[host] = {kvloom::ptx::plain_name(name)};
}

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaErrorInvalidValue;
  const std::lock_guard lock(registered_mutex);
  Registered& known = registered().at(function);
  const auto asked = static_cast<std::size_t>(value);
  if (kernel_of(known).shared_bytes + asked > kvloom::simt::kMostShared) return cudaErrorInvalidValue;
  known.dynamic_shared_limit = asked;
  return cudaSuccess;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function, void** arguments) {
  return start(function, config->gridDim, config->blockDim, arguments, config->dynamicSmemBytes, config->stream);
}
cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments, std::size_t shared,
                             cudaStream_t stream) {
  return start(function, grid, block, arguments, shared, stream);
}

// What <<<>>> comes to. What is tested here has none.
unsigned __cudaPushCallConfiguration(dim3, dim3, std::size_t, CUstream_st*) { kvloom::ptx::stop("a start by <<<>>>"); }
cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, std::size_t*, void*) { kvloom::ptx::stop("a start by <<<>>>"); }
cudaError_t __cudaGetKernel(cudaKernel_t*, const void*) { kvloom::ptx::stop("a start by <<<>>>"); }
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, std::size_t, cudaStream_t) {
  kvloom::ptx::stop("a start by <<<>>>");
}

}  // extern "C"
