// cuBLASLt, opened when the first product is asked for: linked with, it would cost every start of the program half a
// second and 200 MB, on machines without a GPU too.
#pragma once

#include <cublasLt.h>

namespace kvloom::cuda {

class CublasLt {
 public:
  // Throws Error with the loader's reason when there is no such library.
  CublasLt();
  ~CublasLt();
  CublasLt(const CublasLt&) = delete;
  CublasLt& operator=(const CublasLt&) = delete;

  cublasLtHandle_t handle() const { return handle_; }

  // Throws Error naming the call and cuBLAS's reason unless `status` is success.
  void check(cublasStatus_t status, const char* call) const;

  // The library's functions, by its names without "cublasLt".
  decltype(&::cublasLtMatmul) Matmul;
  decltype(&::cublasLtMatmulAlgoGetHeuristic) MatmulAlgoGetHeuristic;
  decltype(&::cublasLtMatmulDescCreate) MatmulDescCreate;
  decltype(&::cublasLtMatmulDescDestroy) MatmulDescDestroy;
  decltype(&::cublasLtMatmulDescSetAttribute) MatmulDescSetAttribute;
  decltype(&::cublasLtMatmulPreferenceCreate) MatmulPreferenceCreate;
  decltype(&::cublasLtMatmulPreferenceDestroy) MatmulPreferenceDestroy;
  decltype(&::cublasLtMatmulPreferenceSetAttribute) MatmulPreferenceSetAttribute;
  decltype(&::cublasLtMatrixLayoutCreate) MatrixLayoutCreate;
  decltype(&::cublasLtMatrixLayoutDestroy) MatrixLayoutDestroy;

 private:
  template <typename Function>
  void find(Function& function, const char* name);

  void* library_ = nullptr;
  decltype(&::cublasLtGetStatusString) status_string_;
  decltype(&::cublasLtCreate) create_;
  decltype(&::cublasLtDestroy) destroy_;
  cublasLtHandle_t handle_ = nullptr;
};

}  // namespace kvloom::cuda
