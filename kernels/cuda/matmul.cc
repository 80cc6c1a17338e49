#include <bit>
#include <cstdint>

#include "kernels/cuda/cublas_lt.h"
#include "kernels/cuda/matmul_plans.h"
#include "kernels/error.h"

namespace kvloom::cuda {
namespace {

// What NVIDIA recommends for Hopper; smaller GPUs use less of it.
constexpr std::size_t kWorkspaceBytes = std::size_t{32} << 20;
constexpr int kLargestAlignment = 256;

cudaDataType_t blas_type(DType dtype) {
  if (dtype == DType::kF32) return CUDA_R_32F;
  if (dtype == DType::kBF16) return CUDA_R_16BF;
  fail("matmul: operands and results are f32 or bf16, not {}", name_of(dtype));
}

int alignment_of(const void* data) {
  const auto zeros = std::countr_zero(reinterpret_cast<std::uintptr_t>(data));
  return zeros >= 8 ? kLargestAlignment : 1 << zeros;
}

// cuBLASLt's objects, freed with their holder.
class Layout {
 public:
  // Column-major, `stride` between columns.
  Layout(const CublasLt& blas, DType dtype, std::int64_t rows, std::int64_t columns, std::int64_t stride)
      : blas_(blas) {
    blas.check(blas.MatrixLayoutCreate(&layout_, blas_type(dtype), static_cast<std::uint64_t>(rows),
                                       static_cast<std::uint64_t>(columns), stride),
               "cublasLtMatrixLayoutCreate");
  }
  ~Layout() { blas_.MatrixLayoutDestroy(layout_); }
  Layout(const Layout&) = delete;
  Layout& operator=(const Layout&) = delete;
  cublasLtMatrixLayout_t get() const { return layout_; }

 private:
  const CublasLt& blas_;
  cublasLtMatrixLayout_t layout_ = nullptr;
};

class Description {
 public:
  Description(const CublasLt& blas, cublasComputeType_t compute, cublasOperation_t a, cublasOperation_t b)
      : blas_(blas) {
    blas.check(blas.MatmulDescCreate(&description_, compute, CUDA_R_32F), "cublasLtMatmulDescCreate");
    set(CUBLASLT_MATMUL_DESC_TRANSA, a);
    set(CUBLASLT_MATMUL_DESC_TRANSB, b);
  }
  // The bias is f32, as the result is.
  void add_bias() {
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, static_cast<std::int32_t>(CUDA_R_32F));
  }
  void set_bias(const float* bias) const { set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, static_cast<const void*>(bias)); }

  ~Description() { blas_.MatmulDescDestroy(description_); }
  Description(const Description&) = delete;
  Description& operator=(const Description&) = delete;
  cublasLtMatmulDesc_t get() const { return description_; }

 private:
  template <typename T>
  void set(cublasLtMatmulDescAttributes_t attribute, T value) const {
    blas_.check(blas_.MatmulDescSetAttribute(description_, attribute, &value, sizeof(value)),
                "cublasLtMatmulDescSetAttribute");
  }
  const CublasLt& blas_;
  cublasLtMatmulDesc_t description_ = nullptr;
};

class Preference {
 public:
  explicit Preference(const CublasLt& blas) : blas_(blas) {
    blas.check(blas.MatmulPreferenceCreate(&preference_), "cublasLtMatmulPreferenceCreate");
  }
  ~Preference() { blas_.MatmulPreferenceDestroy(preference_); }
  Preference(const Preference&) = delete;
  Preference& operator=(const Preference&) = delete;
  cublasLtMatmulPreference_t get() const { return preference_; }

  template <typename T>
  void set(cublasLtMatmulPreferenceAttributes_t attribute, T value) {
    blas_.check(blas_.MatmulPreferenceSetAttribute(preference_, attribute, &value, sizeof(value)),
                "cublasLtMatmulPreferenceSetAttribute");
  }

 private:
  const CublasLt& blas_;
  cublasLtMatmulPreference_t preference_ = nullptr;
};

std::int64_t stride_or(std::int64_t stride, std::int64_t dense) { return stride == 0 ? dense : stride; }

const void* addend_of(const Matmul& op) { return op.addend == nullptr ? op.c : op.addend; }

cublasComputeType_t compute_type(MatmulPrecision precision) {
  return precision == MatmulPrecision::kTf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
}

cublasOperation_t operation_of(Transpose transpose) { return transpose == Transpose::kYes ? CUBLAS_OP_T : CUBLAS_OP_N; }

}  // namespace

struct MatmulPlans::Library {
  CublasLt blas;
};

// Row-major c = op(a) op(b) is column-major c^T = op(b)^T op(a)^T over the same bytes: cuBLASLt's first operand is b.
struct MatmulPlans::Plan {
  Plan(const CublasLt& blas, const Key& key)
      : description(blas, compute_type(key.precision), operation_of(key.transpose_b), operation_of(key.transpose_a)),
        first(blas, key.operand_dtype, key.transpose_b == Transpose::kYes ? key.inner : key.columns,
              key.transpose_b == Transpose::kYes ? key.columns : key.inner, key.b_stride),
        second(blas, key.operand_dtype, key.transpose_a == Transpose::kYes ? key.rows : key.inner,
               key.transpose_a == Transpose::kYes ? key.inner : key.rows, key.a_stride),
        result(blas, key.output_dtype, key.columns, key.rows, key.c_stride) {}

  Description description;
  Layout first;
  Layout second;
  Layout result;
  cublasLtMatmulAlgo_t algorithm{};
  std::size_t workspace_bytes = 0;
  bool found = false;  // what cuBLASLt has a kernel for
};

MatmulPlans::MatmulPlans() = default;
MatmulPlans::~MatmulPlans() = default;

MatmulPlans::Key MatmulPlans::key_of(const Matmul& op, MatmulPrecision precision) {
  return {.rows = op.rows,
          .columns = op.columns,
          .inner = op.inner,
          .a_stride = stride_or(op.a_stride, op.transpose_a == Transpose::kYes ? op.rows : op.inner),
          .b_stride = stride_or(op.b_stride, op.transpose_b == Transpose::kYes ? op.inner : op.columns),
          .c_stride = stride_or(op.c_stride, op.columns),
          .transpose_a = op.transpose_a,
          .transpose_b = op.transpose_b,
          .output = op.output,
          .operand_dtype = op.operand_dtype,
          .output_dtype = op.output_dtype,
          .precision = op.operand_dtype == DType::kF32 ? precision : MatmulPrecision::kF32,
          .epilogue = op.bias != nullptr ? Epilogue::kBias : Epilogue::kNone,
          .a_alignment = alignment_of(op.a),
          .b_alignment = alignment_of(op.b),
          .c_alignment = alignment_of(op.c),
          .addend_alignment = alignment_of(addend_of(op))};
}

// cuBLASLt sees columns where we see rows: its BIAS, which has an element for each of its rows, adds one to each of our
// columns.
std::unique_ptr<MatmulPlans::Plan> MatmulPlans::make_plan(const Key& key, const float* bias) {
  const CublasLt& blas = library_->blas;
  auto plan = std::make_unique<Plan>(blas, key);
  if (key.epilogue == Epilogue::kBias) {
    plan->description.add_bias();
    plan->description.set_bias(bias);  // the choice of an algorithm may look at where it lies
  }
  Preference preference(blas);
  preference.set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspaceBytes);
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, static_cast<std::uint32_t>(key.b_alignment));
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, static_cast<std::uint32_t>(key.a_alignment));
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, static_cast<std::uint32_t>(key.addend_alignment));
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, static_cast<std::uint32_t>(key.c_alignment));
  // Not in place: those sums come in the order of arrival, and equal inputs would not give equal bits.
  preference.set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                 static_cast<std::uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  cublasLtMatmulHeuristicResult_t found{};
  int count = 0;
  const cublasStatus_t status =
      blas.MatmulAlgoGetHeuristic(blas.handle(), plan->description.get(), plan->first.get(), plan->second.get(),
                                  plan->result.get(), plan->result.get(), preference.get(), 1, &found, &count);
  // To be told that there is nothing with an epilogue is no error; what else is wrong, the plain product will say.
  if (key.epilogue == Epilogue::kNone) blas.check(status, "cublasLtMatmulAlgoGetHeuristic");
  plan->found = status == CUBLAS_STATUS_SUCCESS && count > 0 && found.state == CUBLAS_STATUS_SUCCESS;
  if (!plan->found && key.epilogue == Epilogue::kNone) {
    fail("cublasLtMatmulAlgoGetHeuristic: nothing for [{}, {}] x [{}, {}] of {} into {}", key.rows, key.inner,
         key.inner, key.columns, name_of(key.operand_dtype), name_of(key.output_dtype));
  }
  plan->algorithm = found.algo;
  plan->workspace_bytes = found.workspaceSize;
  return plan;
}

void MatmulPlans::multiply(const Plan& plan, const Matmul& op, Queue& queue) {
  const CublasLt& blas = library_->blas;
  const Scratch<std::byte> workspace(queue, static_cast<std::int64_t>(plan.workspace_bytes));
  const float alpha = 1;
  const float beta = op.output == Output::kAccumulate ? 1 : 0;
  blas.check(blas.Matmul(blas.handle(), plan.description.get(), &alpha, op.b, plan.first.get(), op.a, plan.second.get(),
                         &beta, addend_of(op), plan.result.get(), op.c, plan.result.get(), &plan.algorithm,
                         workspace.data(), plan.workspace_bytes, queue.stream()),
             "cublasLtMatmul");
}

bool MatmulPlans::run(const Matmul& op, Queue& queue) {
  if (library_ == nullptr) library_ = std::make_unique<Library>();
  const Key key = key_of(op, queue.matmul_precision());
  std::unique_ptr<Plan>& plan = plans_[key];
  if (plan == nullptr) plan = make_plan(key, op.bias);
  if (!plan->found) return false;
  if (op.bias != nullptr) plan->description.set_bias(op.bias);
  multiply(*plan, op, queue);
  return true;
}

}  // namespace kvloom::cuda
