#include "kernels/cuda/cudnn_attention_graphs.h"

#include <limits>

namespace kvloom::cuda {
namespace {

// Operations come in the order and the form in which NVIDIA's cudnn-frontend (its composite SDPA nodes) gives them:
// cuDNN finds its kernels by the form of the graph.
class Builder {
 public:
  Builder(const Cudnn& cudnn, const CudnnAttentionShape& given)
      : graph(cudnn),
        shape(given),
        queries{shape.batch, shape.heads, shape.length, shape.head_dim},
        keys{shape.batch, shape.kv_heads, shape.length, shape.head_dim},
        scores{shape.batch, shape.heads, shape.length, shape.length},
        rows{shape.batch, shape.heads, shape.length, 1} {}

  CudnnTensor rows_of(const CudnnAxes& sizes, std::int64_t batch_stride, std::int64_t stride) {
    return graph.tensor(sizes, {batch_stride, shape.head_dim, stride, 1}, CUDNN_DATA_BFLOAT16);
  }
  CudnnTensor query() { return rows_of(queries, shape.query_batch_stride, shape.query_stride); }
  CudnnTensor output() { return rows_of(queries, shape.output_batch_stride, shape.output_stride); }
  CudnnTensor key() { return rows_of(keys, shape.key_batch_stride, shape.key_stride); }
  CudnnTensor transposed_key() {
    return graph.tensor(transposed(keys), transposed(key_strides()), CUDNN_DATA_BFLOAT16);
  }
  CudnnAxes key_strides() const { return {shape.key_batch_stride, shape.head_dim, shape.key_stride, 1}; }
  CudnnTensor statistics() { return graph.tensor(rows, row_major(rows), CUDNN_DATA_FLOAT); }

  CudnnTensor pointwise(cudnnPointwiseMode_t mode, std::initializer_list<CudnnTensor> inputs, const CudnnAxes& sizes) {
    const CudnnTensor result = graph.between(sizes);
    graph.pointwise(mode, inputs, result);
    return result;
  }
  CudnnTensor matmul(CudnnTensor a, CudnnTensor b, const CudnnAxes& sizes, cudnnDataType_t type = CUDNN_DATA_FLOAT) {
    const CudnnTensor result = graph.between(sizes, type);
    graph.matmul(a, b, result);
    return result;
  }

  CudnnTensor index(CudnnTensor like, std::int64_t axis) {
    const CudnnTensor result = graph.between(scores, CUDNN_DATA_INT32);
    graph.index(like, axis, result);
    return result;
  }
  // -infinity where a <= b or so does not hold.
  CudnnTensor masked(CudnnTensor input, cudnnPointwiseMode_t comparison, CudnnTensor a, CudnnTensor b) {
    const CudnnTensor holds = graph.between(scores, CUDNN_DATA_BOOLEAN);
    graph.pointwise(comparison, {a, b}, holds, CUDNN_DATA_BOOLEAN);
    return pointwise(CUDNN_POINTWISE_BINARY_SELECT,
                     {input, graph.scalar(-std::numeric_limits<float>::infinity()), holds}, scores);
  }
  CudnnTensor masked(CudnnTensor input) {
    const CudnnTensor row = index(input, 2);
    const CudnnTensor causal = masked(input, CUDNN_POINTWISE_CMP_GE, row, index(input, 3));
    if (shape.window == 0) return causal;
    const CudnnTensor row_again = index(causal, 2);
    const CudnnTensor beyond =
        pointwise(CUDNN_POINTWISE_ADD, {index(causal, 3), graph.scalar(static_cast<float>(shape.window))}, scores);
    return masked(causal, CUDNN_POINTWISE_CMP_GT, beyond, row_again);
  }

  CudnnGraph graph;
  CudnnAttentionShape shape;
  CudnnAxes queries, keys, scores, rows;
};

// The sum over the heads that share a KV head, where they do.
void multiply_for_key(Builder& b, CudnnTensor left, CudnnTensor right, CudnnTensor output) {
  if (b.shape.heads == b.shape.kv_heads) return b.graph.matmul(left, right, output);
  const CudnnTensor of_heads = b.matmul(left, right, b.queries, CUDNN_DATA_BFLOAT16);
  b.graph.reduce(CUDNN_REDUCE_TENSOR_ADD, of_heads, output);
}

// bf16, with rows and columns exchanged.
CudnnTensor turned(Builder& b, CudnnTensor scores) {
  const CudnnTensor result =
      b.graph.between(transposed(b.scores), transposed(row_major(b.scores)), CUDNN_DATA_BFLOAT16);
  b.graph.reshape(scores, result);
  return result;
}

}  // namespace

std::optional<CudnnForward> plan_forward(const CudnnTarget& target, const CudnnAttentionShape& shape) {
  Builder b(target.cudnn(), shape);
  const CudnnTensor query = b.query();
  const CudnnTensor key = b.transposed_key();
  const CudnnTensor value = b.key();
  const CudnnTensor output = b.output();
  const CudnnTensor statistics = b.statistics();

  CudnnTensor scores = b.matmul(query, key, b.scores);
  scores = b.masked(b.pointwise(CUDNN_POINTWISE_MUL, {scores, b.graph.scalar(shape.scale)}, b.scores));
  const CudnnTensor largest = b.graph.between(b.rows);
  b.graph.reduce(CUDNN_REDUCE_TENSOR_MAX, scores, largest);
  const CudnnTensor below = b.pointwise(CUDNN_POINTWISE_SUB, {scores, largest}, b.scores);
  const CudnnTensor exponentials = b.pointwise(CUDNN_POINTWISE_EXP, {below}, b.scores);
  const CudnnTensor total = b.graph.between(b.rows);
  b.graph.reduce(CUDNN_REDUCE_TENSOR_ADD, exponentials, total);
  const CudnnTensor logarithm = b.pointwise(CUDNN_POINTWISE_LOG, {total}, b.rows);
  b.graph.pointwise(CUDNN_POINTWISE_ADD, {largest, logarithm}, statistics);
  const CudnnTensor weights = b.graph.between(b.scores, CUDNN_DATA_BFLOAT16);
  b.graph.pointwise(CUDNN_POINTWISE_DIV, {exponentials, total}, weights);
  b.graph.matmul(weights, value, output);

  std::optional<CudnnPlan> plan = b.graph.plan(target);
  if (!plan.has_value()) return std::nullopt;
  return CudnnForward{query, key, value, output, statistics, std::move(*plan)};
}

// Dao 2023 (arXiv 2307.08691), algorithm 2: dV = P^T dO, dS = P (dO V^T - delta), dQ = dS K, dK = dS^T Q. Written with
// dQ as a product of its own, which is cuDNN's form with one order of sums.
std::optional<CudnnBackward> plan_backward(const CudnnTarget& target, const CudnnAttentionShape& shape) {
  Builder b(target.cudnn(), shape);
  const CudnnTensor query = b.query();
  const CudnnTensor key = b.transposed_key();
  const CudnnTensor value = b.transposed_key();
  const CudnnTensor output = b.output();
  const CudnnTensor grad_output = b.output();
  const CudnnTensor statistics = b.statistics();
  const CudnnTensor delta = b.statistics();
  const CudnnTensor grad_query = b.rows_of(b.queries, shape.grad_query_batch_stride, shape.grad_query_stride);
  const std::int64_t dense_row = shape.kv_heads * shape.head_dim;
  const CudnnTensor grad_key = b.rows_of(b.keys, shape.grad_key_batch_stride, dense_row);
  const CudnnTensor grad_value = b.rows_of(b.keys, shape.grad_key_batch_stride, dense_row);

  const CudnnTensor products = b.graph.between(
      b.queries, {shape.heads * shape.length * shape.head_dim, shape.length * shape.head_dim, shape.head_dim, 1});
  b.graph.pointwise(CUDNN_POINTWISE_MUL, {grad_output, output}, products);
  const CudnnTensor sums = b.graph.between(b.rows);
  b.graph.reduce(CUDNN_REDUCE_TENSOR_ADD, products, sums);
  b.graph.pointwise(CUDNN_POINTWISE_MUL, {sums, b.graph.scalar(1.0f)}, delta);

  const CudnnTensor scale = b.graph.scalar(shape.scale);
  CudnnTensor scores = b.matmul(query, key, b.scores);
  scores = b.pointwise(CUDNN_POINTWISE_MUL, {scores, scale}, b.scores);
  scores = b.masked(b.pointwise(CUDNN_POINTWISE_SUB, {scores, statistics}, b.scores));
  const CudnnTensor weights = b.pointwise(CUDNN_POINTWISE_EXP, {scores}, b.scores);
  multiply_for_key(b, turned(b, weights), grad_output, grad_value);

  CudnnTensor grad_scores = b.matmul(grad_output, value, b.scores);
  grad_scores = b.pointwise(CUDNN_POINTWISE_SUB, {grad_scores, delta}, b.scores);
  grad_scores = b.pointwise(CUDNN_POINTWISE_MUL, {grad_scores, weights}, b.scores);
  grad_scores = b.pointwise(CUDNN_POINTWISE_MUL, {grad_scores, scale}, b.scores);
  multiply_for_key(b, turned(b, grad_scores), query, grad_key);

  const CudnnTensor key_rows = b.graph.between(b.keys, b.key_strides(), CUDNN_DATA_BFLOAT16);
  b.graph.reshape(key, key_rows);
  b.graph.matmul(grad_scores, key_rows, grad_query);

  std::optional<CudnnPlan> plan = b.graph.plan(target);
  if (!plan.has_value()) return std::nullopt;
  return CudnnBackward{query, key,        value,    output,     statistics,      grad_output,
                       delta, grad_query, grad_key, grad_value, std::move(*plan)};
}

}  // namespace kvloom::cuda
