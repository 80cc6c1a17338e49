#include "core/packed_weight.h"

#include <array>

namespace kvloom {

PackedWeight::PackedWeight(Allocator& allocator, const PackedShape& shape) : shape_(shape) {
  if (allocator.device().kind != Device::Kind::kCpu) fail("packed weight: only a CPU has one; right is --device cpu");
  storage_ = Tensor::empty(allocator, {static_cast<std::int64_t>(packed_bytes(shape))}, DType::kU8);
}

void PackedWeight::pack(std::int64_t first_output, const Tensor& rows) {
  if (rows.shape().size() != 2 || rows.size(1) != shape_.inputs || first_output < 0 ||
      first_output + rows.size(0) > shape_.outputs) {
    fail("packed weight: rows {} from {} on do not fit [{}, {}]", to_string(rows.shape()), first_output, shape_.outputs,
         shape_.inputs);
  }
  cpu::run(PackRows{.shape = shape_,
                    .packed = storage_.data(),
                    .weights = rows.data(),
                    .weights_dtype = rows.dtype(),
                    .first_output = first_output,
                    .outputs = rows.size(0)});
}

namespace ops {

void packed_embedding(const Tensor& tokens, const PackedWeight& table, Tensor& output) {
  if (output.shape() != Shape{tokens.count(), table.shape().inputs}) {
    fail("packed embedding: {} for {} tokens of a table [{}, {}]", to_string(output.shape()), tokens.count(),
         table.shape().outputs, table.shape().inputs);
  }
  cpu::run(UnpackRows{.shape = table.shape(),
                      .packed = table.data(),
                      .indices = tokens.as<std::int32_t>().data(),
                      .rows = tokens.count(),
                      .output = output.data(),
                      .dtype = output.dtype()});
}

namespace {

constexpr std::size_t kMostProducts = 4;

PackedPart part_of_call(const Tensor& input, const PackedProduct& product) {
  const PackedShape& shape = product.weight.shape();
  Tensor& output = product.output;
  if (input.shape().size() != 2 || input.size(1) != shape.inputs ||
      output.shape() != Shape{input.size(0), shape.outputs} ||
      (product.bias.defined() && product.bias.count() != shape.outputs) ||
      (product.addend.defined() &&
       (product.addend.shape() != output.shape() || product.addend.dtype() != output.dtype()))) {
    fail("packed linear: input {}, matrix [{}, {}] and output {} do not fit", to_string(input.shape()), shape.outputs,
         shape.inputs, to_string(output.shape()));
  }
  return {.shape = shape,
          .packed = product.weight.data(),
          .output = output.data(),
          .output_dtype = output.dtype(),
          .bias = product.bias.defined() ? product.bias.as<float>().data() : nullptr,
          .addend = product.addend.defined() ? product.addend.data() : nullptr};
}

}  // namespace

void packed_linear(const Tensor& input, std::span<const PackedProduct> products) {
  if (products.size() > kMostProducts)
    fail("packed linear: {} products; right is up to {}", products.size(), kMostProducts);
  std::array<PackedPart, kMostProducts> parts;
  for (std::size_t i = 0; i < products.size(); ++i) parts[i] = part_of_call(input, products[i]);
  cpu::run(PackedLinear{.input = input.data(),
                        .input_dtype = input.dtype(),
                        .rows = input.size(0),
                        .parts = std::span(parts).first(products.size())});
}

}  // namespace ops
}  // namespace kvloom
