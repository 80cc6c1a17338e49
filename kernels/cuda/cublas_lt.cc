#include "kernels/cuda/cublas_lt.h"

#include <dlfcn.h>

#include <string>

#include "kernels/error.h"

namespace kvloom::cuda {

CublasLt::CublasLt() {
  const std::string name = fmt::format("libcublasLt.so.{}", CUBLAS_VER_MAJOR);
  library_ = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library_ == nullptr) fail("matmul: cuBLASLt cannot be opened: {}", dlerror());
  find(Matmul, "cublasLtMatmul");
  find(MatmulAlgoGetHeuristic, "cublasLtMatmulAlgoGetHeuristic");
  find(MatmulDescCreate, "cublasLtMatmulDescCreate");
  find(MatmulDescDestroy, "cublasLtMatmulDescDestroy");
  find(MatmulDescSetAttribute, "cublasLtMatmulDescSetAttribute");
  find(MatmulPreferenceCreate, "cublasLtMatmulPreferenceCreate");
  find(MatmulPreferenceDestroy, "cublasLtMatmulPreferenceDestroy");
  find(MatmulPreferenceSetAttribute, "cublasLtMatmulPreferenceSetAttribute");
  find(MatrixLayoutCreate, "cublasLtMatrixLayoutCreate");
  find(MatrixLayoutDestroy, "cublasLtMatrixLayoutDestroy");
  find(status_string_, "cublasLtGetStatusString");
  find(create_, "cublasLtCreate");
  find(destroy_, "cublasLtDestroy");
  check(create_(&handle_), "cublasLtCreate");
}

// The library itself stays open: it does not take well to being closed while CUDA goes on.
CublasLt::~CublasLt() {
  if (handle_ != nullptr) destroy_(handle_);
}

void CublasLt::check(cublasStatus_t status, const char* call) const {
  if (status != CUBLAS_STATUS_SUCCESS) fail("{}: {}", call, status_string_(status));
}

template <typename Function>
void CublasLt::find(Function& function, const char* name) {
  function = reinterpret_cast<Function>(dlsym(library_, name));
  if (function == nullptr) fail("matmul: cuBLASLt has no {}", name);
}

}  // namespace kvloom::cuda
