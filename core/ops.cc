#include "core/ops.h"

#include <cstring>
#include <string_view>

#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/swiglu.h"
#include "kernels/transfer.h"

namespace kvloom::ops {
namespace {

template <typename Op>
void dispatch(const Device& device, const Op& op) {
  if (device.kind == Device::Kind::kCpu) return cpu::run(op);
  cuda::run(op, *device.queue);
}

void check(bool holds, std::string_view operation, const Tensor& a, const Tensor& b, const Tensor& c) {
  if (holds) return;
  fail("{}: shapes {} {}, {} {} and {} {} do not fit", operation, name_of(a.dtype()), to_string(a.shape()),
       name_of(b.dtype()), to_string(b.shape()), name_of(c.dtype()), to_string(c.shape()));
}

void check(bool holds, std::string_view operation, const Tensor& a, const Tensor& b) {
  if (holds) return;
  fail("{}: shapes {} {} and {} {} do not fit", operation, name_of(a.dtype()), to_string(a.shape()), name_of(b.dtype()),
       to_string(b.shape()));
}

bool is_matrix(const Tensor& tensor) { return tensor.shape().size() == 2; }

void copy_bytes(const Tensor& input, Tensor& output) {
  if (input.count() == 0) return;
  const Device device = output.device().kind == Device::Kind::kCpu ? input.device() : output.device();
  if (device.kind != Device::Kind::kCpu) {
    cuda::run(CopyBytes{output.data(), input.data(), input.bytes()}, *device.queue);
  } else {
    std::memcpy(output.data(), input.data(), input.bytes());
  }
}

std::int64_t last_axis(const Tensor& tensor) { return tensor.shape().empty() ? 1 : tensor.shape().back(); }

// output = input weight^T.
Matmul linear_of(std::string_view operation, const Tensor& input, const Tensor& weight, Tensor& output) {
  check(is_matrix(input) && is_matrix(weight) && is_matrix(output) && input.size(1) == weight.size(1) &&
            output.size(0) == input.size(0) && output.size(1) == weight.size(0) && input.dtype() == weight.dtype(),
        operation, input, weight, output);
  return {.a = input.data(),
          .b = weight.data(),
          .c = output.data(),
          .rows = input.size(0),
          .columns = weight.size(0),
          .inner = input.size(1),
          .transpose_b = Transpose::kYes,
          .operand_dtype = input.dtype(),
          .output_dtype = output.dtype()};
}

RmsNormForward rms_norm_of(const Tensor& input, const Tensor& gain, float epsilon, Tensor& output,
                           Tensor& inverse_rms) {
  const std::int64_t columns = gain.count();
  check(input.count() == output.count() && last_axis(input) % columns == 0 && input.dtype() == output.dtype(),
        "rms_norm", input, gain, output);
  const std::int64_t rows = input.count() / columns;
  if (inverse_rms.defined()) check(inverse_rms.count() == rows, "rms_norm", input, inverse_rms);
  return {.input = input.data(),
          .gain = gain.as<float>().data(),
          .output = output.data(),
          .inverse_rms = inverse_rms.defined() ? inverse_rms.as<float>().data() : nullptr,
          .rows = rows,
          .columns = columns,
          .epsilon = epsilon,
          .dtype = input.dtype()};
}

const std::int32_t* starts_of(const RowPositions& rows, const Tensor& input) {
  if (rows.starts == nullptr) return nullptr;
  check(rows.starts->count() * rows.positions == input.size(0) && rows.starts->device() == input.device(), "rope",
        input, *rows.starts);
  return rows.starts->as<std::int32_t>().data();
}

// Whether the part's output has room for what goes there, as far as the host knows.
bool has_place(const HeadsPart& part, RowPositions rows) {
  const Tensor& output = part.output;
  const std::int64_t input_rows = part.input.size(0);
  switch (part.place) {
    case RowPlace::kDense:
      return is_matrix(output) && output.size(0) == input_rows;
    case RowPlace::kAtPosition:
      return output.shape().size() == 3 && output.size(0) * rows.positions == input_rows &&
             rows.first_position + rows.positions <= output.size(1);
    case RowPlace::kAtPage:
      return output.shape().size() == 3;
  }
  return false;
}

RopePart rope_part(const HeadsPart& part, std::int64_t head_dim, RowPositions rows) {
  const Tensor& input = part.input;
  Tensor& output = part.output;
  const std::int64_t columns = last_axis(output);
  check(is_matrix(input) && input.dtype() == output.dtype() && columns % head_dim == 0 && part.first_column >= 0 &&
            part.first_column + columns <= input.size(1) && input.size(0) % rows.positions == 0 &&
            has_place(part, rows),
        "rope_split", input, output);
  return {.input = static_cast<const std::byte*>(input.data()) +
                   static_cast<std::size_t>(part.first_column) * size_of(input.dtype()),
          .output = output.data(),
          .heads = columns / head_dim,
          .input_stride = input.size(1),
          .output_stride = columns,
          .sequence_stride = part.place == RowPlace::kAtPosition ? output.size(1) * columns : 0,
          .place = part.place,
          .turn = part.turn};
}

}  // namespace

void linear(const Tensor& input, const Tensor& weight, Tensor& output, Output mode) {
  Matmul op = linear_of("linear", input, weight, output);
  op.output = mode;
  dispatch(input.device(), op);
}

void linear_bias(const Tensor& input, const Tensor& weight, const Tensor& bias, Tensor& output) {
  Matmul op = linear_of("linear_bias", input, weight, output);
  if (bias.defined()) {
    check(bias.count() == weight.size(0), "linear_bias", weight, bias);
    op.bias = bias.as<float>().data();
  }
  dispatch(input.device(), op);
}

void linear_add(const Tensor& input, const Tensor& weight, const Tensor& residual, Tensor& output) {
  Matmul op = linear_of("linear_add", input, weight, output);
  check(residual.shape() == output.shape() && residual.dtype() == output.dtype() && residual.data() != output.data(),
        "linear_add", residual, output);
  op.output = Output::kAccumulate;
  op.addend = residual.data();
  dispatch(input.device(), op);
}

void linear_grad_input(const Tensor& grad_output, const Tensor& weight, Tensor& grad_input, Output mode) {
  check(is_matrix(grad_output) && is_matrix(weight) && is_matrix(grad_input) && grad_output.size(1) == weight.size(0) &&
            grad_input.size(0) == grad_output.size(0) && grad_input.size(1) == weight.size(1) &&
            grad_output.dtype() == weight.dtype(),
        "linear_grad_input", grad_output, weight, grad_input);
  dispatch(grad_output.device(), Matmul{.a = grad_output.data(),
                                        .b = weight.data(),
                                        .c = grad_input.data(),
                                        .rows = grad_output.size(0),
                                        .columns = weight.size(1),
                                        .inner = weight.size(0),
                                        .output = mode,
                                        .operand_dtype = grad_output.dtype(),
                                        .output_dtype = grad_input.dtype()});
}

void linear_grad_weight(const Tensor& grad_output, const Tensor& input, Tensor& grad_weight, Tensor& grad_bias) {
  check(is_matrix(grad_output) && is_matrix(input) && is_matrix(grad_weight) && grad_output.size(0) == input.size(0) &&
            grad_weight.size(0) == grad_output.size(1) && grad_weight.size(1) == input.size(1) &&
            grad_output.dtype() == input.dtype() && grad_weight.dtype() == DType::kF32,
        "linear_grad_weight", grad_output, input, grad_weight);
  if (grad_bias.defined()) {
    check(grad_bias.count() == grad_output.size(1), "linear_grad_weight", grad_output, grad_bias);
  }
  dispatch(grad_output.device(), Matmul{.a = grad_output.data(),
                                        .b = input.data(),
                                        .c = grad_weight.data(),
                                        .rows = grad_output.size(1),
                                        .columns = input.size(1),
                                        .inner = grad_output.size(0),
                                        .transpose_a = Transpose::kYes,
                                        .output = Output::kAccumulate,
                                        .operand_dtype = input.dtype(),
                                        .output_dtype = DType::kF32,
                                        .row_sums = grad_bias.defined() ? grad_bias.as<float>().data() : nullptr});
}

void linear_grad_weight(const Tensor& grad_output, const Tensor& input, Tensor& grad_weight) {
  Tensor no_bias;
  linear_grad_weight(grad_output, input, grad_weight, no_bias);
}

void rms_norm(const Tensor& input, const Tensor& gain, float epsilon, Tensor& output, Tensor& inverse_rms) {
  dispatch(input.device(), rms_norm_of(input, gain, epsilon, output, inverse_rms));
}

void add_rms_norm(const Tensor& a, const Tensor& b, const Tensor& gain, float epsilon, Tensor& sum, Tensor& output,
                  Tensor& inverse_rms) {
  check(a.shape() == b.shape() && a.dtype() == b.dtype() && a.shape() == sum.shape() && a.dtype() == sum.dtype(),
        "add_rms_norm", a, b, sum);
  RmsNormForward op = rms_norm_of(a, gain, epsilon, output, inverse_rms);
  op.addend = b.data();
  op.sum = sum.data();
  dispatch(a.device(), op);
}

void rms_norm_grad(const Tensor& input, const Tensor& gain, const Tensor& inverse_rms, const Tensor& grad_output,
                   Tensor& grad_input, Output mode, Tensor& grad_gain) {
  const std::int64_t columns = gain.count();
  check(input.count() == grad_output.count() && input.count() == grad_input.count() &&
            inverse_rms.count() * columns == input.count() && grad_gain.count() == columns &&
            input.dtype() == grad_output.dtype() && input.dtype() == grad_input.dtype(),
        "rms_norm_grad", input, inverse_rms, grad_output);
  dispatch(input.device(), RmsNormBackward{.input = input.data(),
                                           .gain = gain.as<float>().data(),
                                           .inverse_rms = inverse_rms.as<float>().data(),
                                           .grad_output = grad_output.data(),
                                           .grad_input = grad_input.data(),
                                           .grad_gain = grad_gain.as<float>().data(),
                                           .rows = input.count() / columns,
                                           .columns = columns,
                                           .accumulate_input = mode == Output::kAccumulate,
                                           .dtype = input.dtype()});
}

void rope(Tensor& data, const Tensor& cosine, const Tensor& sine, RowPositions rows, Rotation rotation) {
  const std::int64_t head_dim = 2 * cosine.size(1);
  check(is_matrix(data) && data.size(1) % head_dim == 0 && data.size(0) % rows.positions == 0 &&
            rows.first_position + rows.positions <= cosine.size(0) && cosine.shape() == sine.shape(),
        "rope", data, cosine, sine);
  dispatch(data.device(), Rope{.data = data.data(),
                               .cosine = cosine.as<float>().data(),
                               .sine = sine.as<float>().data(),
                               .rows = data.size(0),
                               .heads = data.size(1) / head_dim,
                               .head_dim = head_dim,
                               .stride = data.size(1),
                               .first_position = rows.first_position,
                               .row_period = rows.positions,
                               .rotation = rotation,
                               .dtype = data.dtype(),
                               .starts = starts_of(rows, data)});
}

PageTable page_table_of(const Tensor& table, const Tensor& pool) {
  check(is_matrix(table) && pool.shape().size() == 3 && table.device() == pool.device(), "pages", table, pool);
  return {.pages = table.as<std::int32_t>().data(), .pages_per_sequence = table.size(1), .page_size = pool.size(1)};
}

void rope_split(std::span<const HeadsPart> parts, const Tensor& cosine, const Tensor& sine, RowPositions rows,
                const Tensor* page_table) {
  if (parts.empty() || parts.size() > 3) fail("rope_split: {} parts; right is 1 to 3", parts.size());
  const Tensor& input = parts.front().input;
  check(rows.first_position + rows.positions <= cosine.size(0) && cosine.shape() == sine.shape(), "rope_split", input,
        cosine, sine);
  RopeSplit op{.parts = {},
               .cosine = cosine.as<float>().data(),
               .sine = sine.as<float>().data(),
               .rows = input.size(0),
               .head_dim = 2 * cosine.size(1),
               .first_position = rows.first_position,
               .row_period = rows.positions,
               .dtype = input.dtype(),
               .starts = starts_of(rows, input)};
  for (std::size_t i = 0; i < parts.size(); ++i) {
    check(parts[i].input.size(0) == op.rows && parts[i].input.dtype() == op.dtype, "rope_split", input, parts[i].input);
    op.parts[i] = rope_part(parts[i], op.head_dim, rows);
    if (parts[i].place != RowPlace::kAtPage) continue;
    if (page_table == nullptr) fail("rope_split: a part goes to pages, but there is no page table");
    const PageTable table = page_table_of(*page_table, parts[i].output);
    check(page_table->size(0) * rows.positions == op.rows &&
              (op.page_table.pages == nullptr || op.page_table.page_size == table.page_size),
          "rope_split", *page_table, parts[i].output);
    op.page_table = table;
  }
  dispatch(input.device(), op);
}

void swiglu(const Tensor& gate_up, Tensor& output) {
  check(is_matrix(gate_up) && is_matrix(output) && gate_up.size(0) == output.size(0) &&
            gate_up.size(1) == 2 * output.size(1) && gate_up.dtype() == output.dtype(),
        "swiglu", gate_up, output);
  dispatch(gate_up.device(),
           SwigluForward{gate_up.data(), output.data(), output.size(0), output.size(1), output.dtype()});
}

void swiglu_grad(const Tensor& gate_up, const Tensor& grad_output, Tensor& grad_gate_up) {
  check(is_matrix(gate_up) && is_matrix(grad_output) && gate_up.size(1) == 2 * grad_output.size(1) &&
            gate_up.shape() == grad_gate_up.shape() && gate_up.dtype() == grad_output.dtype(),
        "swiglu_grad", gate_up, grad_output, grad_gate_up);
  dispatch(gate_up.device(), SwigluBackward{gate_up.data(), grad_output.data(), grad_gate_up.data(),
                                            grad_output.size(0), grad_output.size(1), gate_up.dtype()});
}

void embedding(const Tensor& tokens, const Tensor& table, std::int64_t first_token, Tensor& output) {
  check(is_matrix(output) && output.size(0) == tokens.count() && output.size(1) == table.size(1) &&
            output.dtype() == table.dtype(),
        "embedding", tokens, table, output);
  dispatch(output.device(), EmbeddingForward{.tokens = tokens.as<std::int32_t>().data(),
                                             .table = table.data(),
                                             .output = output.data(),
                                             .rows = output.size(0),
                                             .columns = output.size(1),
                                             .table_rows = table.size(0),
                                             .first_token = first_token,
                                             .dtype = output.dtype()});
}

void embedding_grad(const Tensor& tokens, const Tensor& grad_output, std::int64_t first_token, Tensor& grad_table) {
  check(is_matrix(grad_output) && grad_output.size(0) == tokens.count() && grad_output.size(1) == grad_table.size(1),
        "embedding_grad", tokens, grad_output, grad_table);
  dispatch(grad_output.device(), EmbeddingBackward{.tokens = tokens.as<std::int32_t>().data(),
                                                   .grad_output = grad_output.data(),
                                                   .grad_table = grad_table.as<float>().data(),
                                                   .rows = grad_output.size(0),
                                                   .columns = grad_output.size(1),
                                                   .table_rows = grad_table.size(0),
                                                   .first_token = first_token,
                                                   .dtype = grad_output.dtype()});
}

void run(const Device& device, const AttentionForward& op) { dispatch(device, op); }
void run(const Device& device, const AttentionBackward& op) { dispatch(device, op); }
void run(const Device& device, const CrossEntropyStatistics& op) { dispatch(device, op); }
void run(const Device& device, const RescaleTotals& op) { dispatch(device, op); }
void run(const Device& device, const CrossEntropy& op) { dispatch(device, op); }
void run(const Device& device, const AdamW& op) { dispatch(device, op); }
void run(const Device& device, const SumOfSquares& op) { dispatch(device, op); }
void run(const Device& device, const SampleTokens& op) {
  if (device.kind == Device::Kind::kCpu) fail("sample_tokens: {} has no logits on a GPU", name_of(device));
  cuda::run(op, *device.queue);
}

void add(const Tensor& a, const Tensor& b, Tensor& output) {
  check(a.count() == b.count() && a.count() == output.count() && a.dtype() == b.dtype() && a.dtype() == output.dtype(),
        "add", a, b, output);
  dispatch(a.device(), Add{a.data(), b.data(), output.data(), a.count(), a.dtype()});
}

void copy(const Tensor& input, Tensor& output) {
  check(input.count() == output.count(), "copy", input, output);
  if (input.dtype() == output.dtype()) return copy_bytes(input, output);
  check(input.device() == output.device(), "copy to another type on another device", input, output);
  dispatch(input.device(), Cast{.input = input.data(),
                                .output = output.data(),
                                .rows = 1,
                                .columns = input.count(),
                                .input_dtype = input.dtype(),
                                .output_dtype = output.dtype()});
}

void copy_into_blocks(const Tensor& input, Tensor& output, std::int64_t offset) {
  check(input.dtype() == output.dtype() && input.device() == output.device() && input.size(0) == output.size(0) &&
            offset >= 0 && offset * output.size(0) + input.count() <= output.count(),
        "copy_into_blocks", input, output);
  if (input.count() == 0) return;
  const std::int64_t blocks = input.size(0);
  auto* target = static_cast<std::byte*>(output.data()) + static_cast<std::size_t>(offset) * size_of(output.dtype());
  dispatch(input.device(), Cast{.input = input.data(),
                                .output = target,
                                .rows = blocks,
                                .columns = input.count() / blocks,
                                .input_dtype = input.dtype(),
                                .output_dtype = output.dtype(),
                                .output_stride = output.count() / blocks});
}

void advance(Tensor& values, std::int32_t by) {
  dispatch(values.device(), Advance{values.as<std::int32_t>().data(), values.count(), by});
}

Change max_change(const Tensor& a, const Tensor& b) {
  check(a.count() == b.count() && a.dtype() == b.dtype(), "max_change", a, b);
  Change change{};
  dispatch(a.device(),
           MaxChange{a.data(), b.data(), a.count(), &change.largest_difference, &change.largest_value, a.dtype()});
  return change;
}

}  // namespace kvloom::ops
