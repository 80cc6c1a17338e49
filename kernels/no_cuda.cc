// In place of cuda/ when the build has no CUDA: no tensor can be on a GPU then, so that nothing here is ever reached.
#include "kernels/adamw.h"
#include "kernels/attention.h"
#include "kernels/attention_choice.h"
#include "kernels/cross_entropy.h"
#include "kernels/cuda/sum_parts.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/error.h"
#include "kernels/matmul.h"
#include "kernels/reduce.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/sample.h"
#include "kernels/swiglu.h"
#include "kernels/transfer.h"

namespace kvloom::cuda {
namespace {

[[noreturn]] void no_cuda() { fail("this build has no CUDA: build with -DKVLOOM_CUDA=ON"); }

}  // namespace

void choose_attention(Queue&, AttentionChoice, std::function<void(const std::string&)>) { no_cuda(); }
void choose_matmul_precision(Queue&, MatmulPrecision) { no_cuda(); }
void run(const AdamW&, Queue&) { no_cuda(); }
void run(const AttentionForward&, Queue&) { no_cuda(); }
void run(const AttentionBackward&, Queue&) { no_cuda(); }
void run(const CrossEntropyStatistics&, Queue&) { no_cuda(); }
void run(const RescaleTotals&, Queue&) { no_cuda(); }
void run(const CrossEntropy&, Queue&) { no_cuda(); }
void run(const Add&, Queue&) { no_cuda(); }
void run(const Cast&, Queue&) { no_cuda(); }
void run(const BiasForward&, Queue&) { no_cuda(); }
void run(const BiasBackward&, Queue&) { no_cuda(); }
void run(const Advance&, Queue&) { no_cuda(); }
void run(const EmbeddingForward&, Queue&) { no_cuda(); }
void run(const EmbeddingBackward&, Queue&) { no_cuda(); }
void run(const Matmul&, Queue&) { no_cuda(); }
void run(const SumOfSquares&, Queue&) { no_cuda(); }
void run(const MaxChange&, Queue&) { no_cuda(); }
void run(const RmsNormForward&, Queue&) { no_cuda(); }
void run(const RmsNormBackward&, Queue&) { no_cuda(); }
void run(const Rope&, Queue&) { no_cuda(); }
void run(const RopeSplit&, Queue&) { no_cuda(); }
void run(const SampleTokens&, Queue&) { no_cuda(); }
void run(const CopyBytes&, Queue&) { no_cuda(); }
void run(const FillZero&, Queue&) { no_cuda(); }
void run(const SumParts&, CUstream_st*) { no_cuda(); }
void run(const SwigluForward&, Queue&) { no_cuda(); }
void run(const SwigluBackward&, Queue&) { no_cuda(); }

}  // namespace kvloom::cuda
