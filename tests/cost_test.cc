// What a decode step costs at least, beside counts made by hand.
#include "core/cost.h"

#include <gtest/gtest.h>

#include "core/model.h"
#include "proto/model.pb.h"
#include "tests/support/random.h"

namespace kvloom {
namespace {

constexpr double kHidden = 8, kFfn = 12, kHeads = 4, kKvHeads = 2, kHeadDim = 2, kVocab = 20;

ModelConfig config_of(const char* map, int layers, bool tied) {
  proto::ModelConfig message;
  message.set_layers(static_cast<std::uint32_t>(layers));
  message.set_hidden(kHidden);
  message.set_ffn(kFfn);
  message.set_heads(kHeads);
  message.set_kv_heads(kKvHeads);
  message.set_vocab(kVocab);
  message.set_context(64);
  message.set_window(5);
  message.set_kv_map(map);
  message.set_tied_embeddings(tied);
  return ModelConfig::from_proto(message);
}

double matrices(double layers, double kv_layers) {
  const double query_and_output = 2 * kHidden * kHeads * kHeadDim;
  const double key_and_value = 2 * kHidden * kKvHeads * kHeadDim;
  return layers * (query_and_output + 3 * kHidden * kFfn) + kv_layers * key_and_value + kVocab * kHidden;
}

double norm_bytes(double layers) { return 4 * kHidden * (2 * layers + 1); }

TEST(DecodeCost, ReadsEveryWeightOnceAndOfTheEmbeddingTheTokensRows) {
  for (const double sequences : {1.0, 3.0}) {
    const auto count = static_cast<std::int64_t>(sequences);
    const DecodeCost apart = decode_cost(config_of("0_1_1", 3, false), DType::kBF16, count, 10);
    EXPECT_DOUBLE_EQ(apart.weight_bytes, 2 * matrices(3, 2) + norm_bytes(3) + 2 * sequences * kHidden);
    const DecodeCost tied = decode_cost(config_of("0_1_1", 3, true), DType::kF32, count, 10);
    EXPECT_DOUBLE_EQ(tied.weight_bytes, 4 * matrices(3, 2) + norm_bytes(3));
  }
}

// Whatever a layer has: as many bytes as the tensors that a model computes with.
TEST(DecodeCost, ReadsAsManyBytesAsAModelHolds) {
  test::Random random;
  for (int round = 0; round < 20; ++round) {
    ModelConfig config = config_of(random.flip() ? "0_2_2_3" : "2_1_2_1", 4, true);
    config.qkv_bias = random.flip();
    config.qk_norm = random.flip();
    const DType dtype = random.flip() ? DType::kBF16 : DType::kF32;
    CachingCpuAllocator allocator;
    const Model model(config, dtype, allocator);
    std::size_t bytes = model.weights().head.bytes() + model.weights().final_norm.bytes();
    for (const LayerWeights& layer : model.weights().layers) {
      for (const Tensor& tensor : {layer.attention_norm, layer.query, layer.key, layer.value, layer.query_bias,
                                   layer.key_bias, layer.value_bias, layer.query_norm, layer.key_norm, layer.output,
                                   layer.ffn_norm, layer.gate_up, layer.down}) {
        if (tensor.defined()) bytes += tensor.bytes();
      }
    }
    EXPECT_DOUBLE_EQ(decode_cost(config, dtype, 3, 10).weight_bytes, static_cast<double>(bytes)) << round;
  }
}

TEST(DecodeCost, IsTheMeanOfItsSteps) {
  const ModelConfig config = config_of("0s_2s_2", 3, false);
  double bytes = 0, flops = 0;
  for (int position = 3; position < 8; ++position) {
    bytes += decode_cost(config, DType::kF32, 2, position).bytes() / 5;
    flops += decode_cost(config, DType::kF32, 2, position).flops / 5;
  }
  EXPECT_NEAR(decode_cost(config, DType::kF32, 2, 3, 5).bytes(), bytes, 1e-9 * bytes);
  EXPECT_NEAR(decode_cost(config, DType::kF32, 2, 3, 5).flops, flops, 1e-9 * flops);
}

// Position 10: a downward reader sees 11 positions, an upward one 10, a window of 5 shows 5, upward 4 of them.
TEST(DecodeCost, EveryReaderReadsWhatItSeesOfItsSource) {
  const double row = 2 * kKvHeads * kHeadDim;
  EXPECT_DOUBLE_EQ(decode_cost(config_of("0_0_0", 3, false), DType::kF32, 2, 10).key_value_bytes, 2 * 4 * row * 33);
  EXPECT_DOUBLE_EQ(decode_cost(config_of("2_2_2", 3, false), DType::kBF16, 1, 10).key_value_bytes, 2 * row * 31);
  EXPECT_DOUBLE_EQ(decode_cost(config_of("0s_2s_2", 3, false), DType::kF32, 1, 10).key_value_bytes,
                   4 * row * (5 + 4 + 11));
  EXPECT_DOUBLE_EQ(decode_cost(config_of("1_1", 2, false), DType::kF32, 1, 0).key_value_bytes, 4 * row * 1);
}

TEST(DecodeCost, CountsAMultiplyAddOfEveryMatrixAndPair) {
  const double attention = 4 * kHeads * kHeadDim * (11 + 11 + 11);
  EXPECT_DOUBLE_EQ(decode_cost(config_of("0_1_1", 3, false), DType::kF32, 3, 10).flops,
                   3 * (2 * matrices(3, 2) + attention));
  EXPECT_DOUBLE_EQ(decode_cost(config_of("0_1_1", 3, true), DType::kF32, 1, 10).flops, 2 * matrices(3, 2) + attention);
}

}  // namespace
}  // namespace kvloom
