#include "kernels/cuda/cudnn_attention.h"

#include <cuda_runtime_api.h>

#include <initializer_list>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "kernels/cuda/attention_statistics.h"
#include "kernels/cuda/attention_ways.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/cudnn_plans.h"
#include "kernels/elementwise.h"
#include "kernels/error.h"
#include "kernels/reduce.h"
#include "kernels/transfer.h"

namespace kvloom::cuda {
namespace {

// How far bf16 results may be apart, in parts of the largest: each side rounds, and rounds the weights before.
constexpr float kMostApart = 3e-2f;
// Gradients are differences of terms as large as the gradient that came in: what remains of them may be rounding alone.
constexpr float kRounding = 0x1p-8f;
constexpr std::int64_t kLargestHead = 128;

const BFloat16* row(const void* data, std::int64_t index, std::int64_t stride) {
  return static_cast<const BFloat16*>(data) + index * stride;
}
// cuDNN takes all pointers as ones that it may write to.
void* place(const void* data, std::int64_t index = 0, std::int64_t stride = 0) {
  return const_cast<BFloat16*>(row(data, index, stride));
}

bool is_aligned(std::initializer_list<const void*> all) {
  for (const void* data : all) {
    if (reinterpret_cast<std::uintptr_t>(data) % 16 != 0) return false;
  }
  return true;
}

// Queries that see nothing whatever the keys: cuDNN is not asked about them.
std::int64_t skipped_queries(const AttentionShape& shape) { return shape.visibility == Visibility::kUpward ? 1 : 0; }

StatisticsShape statistics_of(const AttentionShape& shape) {
  return {shape.batch, shape.queries, shape.heads, skipped_queries(shape)};
}
std::int64_t statistics_count(const AttentionShape& shape) {
  return shape.batch * shape.heads * (shape.queries - skipped_queries(shape));
}

std::int64_t kv_elements(const AttentionShape& shape) {
  return shape.batch * shape.keys * shape.kv_heads * shape.head_dim;
}

// Plans made so far; nothing where cuDNN has none.
template <typename Places>
using Kept = std::map<CudnnAttentionShape, std::optional<CudnnAttentionPlan<Places>>>;

template <typename Places>
struct Found {
  const CudnnAttentionPlan<Places>* plan;  // null: there is none
  bool is_new;
};
template <typename Places, typename Make>
Found<Places> plan_of(Kept<Places>& kept, const CudnnAttentionShape& shape, const Make& make) {
  auto found = kept.find(shape);
  const bool is_new = found == kept.end();
  if (is_new) found = kept.emplace(shape, make(shape)).first;
  return {found->second.has_value() ? &*found->second : nullptr, is_new};
}

// Why cuDNN is not asked; empty when it is.
std::string refusal(const AttentionShape& shape) {
  const std::int64_t skipped = skipped_queries(shape);
  if (shape.dtype != DType::kBF16) return "cuDNN's fused kernels take bf16";
  if (shape.head_dim % 8 != 0 || shape.head_dim > kLargestHead) return "head_dim is no multiple of 8 up to 128";
  if (shape.first_position != 0) return "queries do not begin with position 0";
  if (shape.queries <= skipped) return "no query sees anything";
  if (shape.keys < shape.queries - skipped) return "fewer keys than queries";
  if (shape.window > 0 && shape.window <= skipped) return "the window leaves nothing to see";
  if (shape.output_stride != shape.heads * shape.head_dim) return "rows have gaps";
  if ((shape.query_stride | shape.key_stride | shape.key_batch_stride) % 8 != 0) return "rows are not aligned";
  return {};
}

CudnnAttentionShape cudnn_shape(const AttentionShape& shape) {
  const std::int64_t skipped = skipped_queries(shape);
  const std::int64_t length = shape.queries - skipped;
  const std::int64_t window = shape.window - (shape.window > 0 ? skipped : 0);
  return {.batch = shape.batch,
          .length = length,
          .heads = shape.heads,
          .kv_heads = shape.kv_heads,
          .head_dim = shape.head_dim,
          .window = window < length ? window : 0,
          .scale = shape.scale,
          .query_batch_stride = shape.queries * shape.query_stride,
          .query_stride = shape.query_stride,
          .output_batch_stride = shape.queries * shape.output_stride,
          .output_stride = shape.output_stride,
          .key_batch_stride = shape.key_batch_stride,
          .key_stride = shape.key_stride};
}

CudnnAttentionShape cudnn_shape(const AttentionBackward& op) {
  CudnnAttentionShape shape = cudnn_shape(op.shape);
  shape.grad_query_batch_stride = op.shape.queries * op.grad_query_stride;
  shape.grad_query_stride = op.grad_query_stride;
  shape.grad_key_batch_stride = op.shape.keys * op.shape.kv_heads * op.shape.head_dim;
  return shape;
}

// Position 0 of every sequence = 0, of rows [batch, queries, heads * head_dim].
void clear_skipped(const AttentionShape& shape, void* rows, std::int64_t stride, Queue& queue) {
  if (skipped_queries(shape) == 0) return;
  check_cuda(cudaMemset2DAsync(rows, static_cast<std::size_t>(shape.queries * stride) * sizeof(BFloat16), 0,
                               static_cast<std::size_t>(shape.heads * shape.head_dim) * sizeof(BFloat16),
                               static_cast<std::size_t>(shape.batch), queue.stream()),
             "cudaMemset2DAsync");
}

void widen(const BFloat16* from, float* to, std::int64_t count, Queue& queue) {
  run(Cast{from, to, 1, count, DType::kBF16, DType::kF32}, queue);
}

// f32 sums += what cuDNN left in bf16.
void add_to(float* sums, const BFloat16* values, std::int64_t count, Queue& queue) {
  const Scratch<float> wide(queue, count);
  widen(values, wide.data(), count, queue);
  run(Add{sums, wide.data(), sums, count}, queue);
}

}  // namespace

struct CudnnAttention::State {
  State(Queue& queue, std::function<void(const std::string&)> given) : log(std::move(given)), plans(queue) {}

  void say_once(const std::string& words) {
    if (said.insert(words).second) log("attention: " + words);
  }

  // Throws Error when cuDNN's result is not kvloom's own. `terms`: how large what was added up to it may have been.
  void compare(const char* what, const void* own, const void* cudnns, std::int64_t count, DType dtype, Queue& queue,
               float terms = 0) {
    float change = 0;
    float size = 0;
    cuda::run(MaxChange{own, cudnns, count, &change, &size, dtype}, queue);
    if (change <= kMostApart * size + kRounding * terms) return;
    fail("attention: cuDNN's {} differs from kvloom's own by {} where the largest is {}; right is --attention kvloom",
         what, change, size);
  }

  // What cuDNN left at `op`, and the statistics in its order.
  void compare_with_own(const AttentionForward& op, const float* statistics, Queue& queue);
  // The same, with the gradients of K and V before they are added to the op's.
  void compare_with_own(const AttentionBackward& op, const BFloat16* grad_key, const BFloat16* grad_value,
                        Queue& queue);

  std::function<void(const std::string&)> log;
  std::set<std::string> said;
  CudnnPlans plans;
  Kept<CudnnForwardPlaces> forward;
  Kept<CudnnBackwardPlaces> backward;
};

void CudnnAttention::State::compare_with_own(const AttentionForward& op, const float* statistics, Queue& queue) {
  const AttentionShape& shape = op.shape;
  const std::int64_t elements = shape.batch * shape.queries * shape.output_stride;
  const std::int64_t count = statistics_count(shape);
  const Scratch<BFloat16> output(queue, elements);
  const Scratch<float> log_sum_exp(queue, shape.batch * shape.queries * shape.heads);
  const Scratch<float> own_statistics(queue, count);
  AttentionForward own = op;
  own.output = output.data();
  own.log_sum_exp = log_sum_exp.data();
  run_own(own, queue);
  statistics_to_cudnn(log_sum_exp.data(), own_statistics.data(), statistics_of(shape), queue);
  compare("output", output.data(), op.output, elements, DType::kBF16, queue);
  compare("log-sum-exp", own_statistics.data(), statistics, count, DType::kF32, queue);
}

void CudnnAttention::State::compare_with_own(const AttentionBackward& op, const BFloat16* grad_key,
                                             const BFloat16* grad_value, Queue& queue) {
  const AttentionShape& shape = op.shape;
  const std::int64_t elements = shape.batch * shape.queries * op.grad_query_stride;
  const std::int64_t kv_count = kv_elements(shape);
  const Scratch<BFloat16> own_query(queue, elements);
  const Scratch<float> sums(queue, 2 * kv_count);
  const Scratch<float> wide(queue, kv_count);
  cuda::run(FillZero{sums.data(), static_cast<std::size_t>(2 * kv_count) * sizeof(float)}, queue);
  AttentionBackward own = op;
  own.grad_query = own_query.data();
  own.grad_key = sums.data();
  own.grad_value = sums.data() + kv_count;
  run_own(own, queue);
  const std::int64_t outputs = shape.batch * shape.queries * shape.output_stride;
  float nothing = 0;
  float terms = 0;
  cuda::run(MaxChange{op.grad_output, op.grad_output, outputs, &nothing, &terms, DType::kBF16}, queue);
  compare("gradient of queries", own_query.data(), op.grad_query, elements, DType::kBF16, queue, terms);
  widen(grad_key, wide.data(), kv_count, queue);
  compare("gradient of keys", own.grad_key, wide.data(), kv_count, DType::kF32, queue, terms);
  widen(grad_value, wide.data(), kv_count, queue);
  compare("gradient of values", own.grad_value, wide.data(), kv_count, DType::kF32, queue, terms);
}

CudnnAttention::CudnnAttention(Queue& queue, std::function<void(const std::string&)> log)
    : state_(std::make_unique<State>(queue, std::move(log))) {
  state_->say_once(
      fmt::format("cuDNN {}, each shape's first result held against kvloom's own", state_->plans.version()));
}

CudnnAttention::~CudnnAttention() = default;

bool CudnnAttention::run(const AttentionForward& op, Queue& queue) {
  std::string reason = op.starts != nullptr ? "sequences stand at positions of their own" : refusal(op.shape);
  if (reason.empty() && !is_aligned({op.query, op.key, op.value, op.output})) reason = "rows are not aligned";
  if (!reason.empty()) {
    state_->say_once("kvloom's own kernel for some shapes: " + reason);
    return false;
  }
  queue.enter();
  const auto [plan, is_new] = plan_of(state_->forward, cudnn_shape(op.shape), [this](const CudnnAttentionShape& shape) {
    return state_->plans.forward(shape);
  });
  if (plan == nullptr) {
    state_->say_once("kvloom's own kernel for some shapes: cuDNN has no forward plan for them");
    return false;
  }
  const std::int64_t skipped = skipped_queries(op.shape);
  const Scratch<float> statistics(queue, statistics_count(op.shape));
  const Scratch<std::byte> workspace(queue, static_cast<std::int64_t>(plan->workspace_bytes));
  plan->run({.query = place(op.query, skipped, op.shape.query_stride),
             .key = place(op.key),
             .value = place(op.value),
             .output = place(op.output, skipped, op.shape.output_stride),
             .statistics = statistics.data()},
            workspace.data());
  clear_skipped(op.shape, op.output, op.shape.output_stride, queue);
  if (op.log_sum_exp != nullptr) {
    statistics_from_cudnn(statistics.data(), op.log_sum_exp, statistics_of(op.shape), queue);
  }
  if (is_new) state_->compare_with_own(op, statistics.data(), queue);
  return true;
}

bool CudnnAttention::run(const AttentionBackward& op, Queue& queue) {
  const AttentionShape& all = op.shape;
  if (!refusal(all).empty() || op.grad_query_stride != all.heads * all.head_dim ||
      !is_aligned({op.query, op.key, op.value, op.output, op.grad_output, op.grad_query})) {
    return false;  // forward has said why
  }
  queue.enter();
  const auto [plan, is_new] = plan_of(state_->backward, cudnn_shape(op), [this](const CudnnAttentionShape& shape) {
    return state_->plans.backward(shape);
  });
  if (plan == nullptr) {
    state_->say_once("kvloom's own kernel for some shapes: cuDNN has no backward plan with one order of sums for them");
    return false;
  }
  const std::int64_t skipped = skipped_queries(all);
  const std::int64_t kv_count = kv_elements(all);
  const Scratch<float> statistics(queue, statistics_count(all));
  const Scratch<float> delta(queue, statistics_count(all));
  const Scratch<BFloat16> grad_key(queue, kv_count);
  const Scratch<BFloat16> grad_value(queue, kv_count);
  const Scratch<std::byte> workspace(queue, static_cast<std::int64_t>(plan->workspace_bytes));
  // Keys that no query of the plan sees have no place in its result.
  cuda::run(FillZero{grad_key.data(), static_cast<std::size_t>(kv_count) * sizeof(BFloat16)}, queue);
  cuda::run(FillZero{grad_value.data(), static_cast<std::size_t>(kv_count) * sizeof(BFloat16)}, queue);
  statistics_to_cudnn(op.log_sum_exp, statistics.data(), statistics_of(all), queue);
  plan->run({.query = place(op.query, skipped, all.query_stride),
             .key = place(op.key),
             .value = place(op.value),
             .output = place(op.output, skipped, all.output_stride),
             .statistics = statistics.data(),
             .grad_output = place(op.grad_output, skipped, all.output_stride),
             .delta = delta.data(),
             .grad_query = place(op.grad_query, skipped, op.grad_query_stride),
             .grad_key = grad_key.data(),
             .grad_value = grad_value.data()},
            workspace.data());
  clear_skipped(all, op.grad_query, op.grad_query_stride, queue);
  if (is_new) state_->compare_with_own(op, grad_key.data(), grad_value.data(), queue);
  if (op.grad_key != nullptr) {
    add_to(op.grad_key, grad_key.data(), kv_count, queue);
    add_to(op.grad_value, grad_value.data(), kv_count, queue);
  }
  return true;
}

}  // namespace kvloom::cuda
