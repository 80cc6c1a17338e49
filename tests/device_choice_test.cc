#include "core/device_choice.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "kernels/error.h"

namespace kvloom {
namespace {

TEST(DeviceChoice, NamesAreReadAndOthersRefused) {
  EXPECT_EQ(parse_device("cpu"), Device{});
  EXPECT_EQ(parse_device("cuda").kind, Device::Kind::kCuda);
  EXPECT_EQ(parse_device("cuda:3").index, 3);
  for (const char* text : {"", "gpu", "cuda:", "cuda:-1", "cuda:1x"}) EXPECT_THROW(parse_device(text), InputError);
}

TEST(AttentionChoice, NamesAreReadAndOthersRefused) {
  EXPECT_EQ(parse_attention("auto"), AttentionChoice::kAuto);
  EXPECT_EQ(parse_attention("cudnn"), AttentionChoice::kCudnn);
  EXPECT_EQ(parse_attention("kvloom"), AttentionChoice::kKvloom);
  EXPECT_THROW(parse_attention("flash"), InputError);
}

TEST(AttentionChoice, CudnnIsRefusedOnTheCpuWhereTheOthersAreAllTheSame) {
  EXPECT_THROW(make_allocator({}, {.attention = AttentionChoice::kCudnn}), InputError);
  EXPECT_NE(make_allocator({}, {.attention = AttentionChoice::kAuto}), nullptr);
  EXPECT_NE(make_allocator({}, {.attention = AttentionChoice::kKvloom}), nullptr);
}

TEST(MatmulPrecision, NamesAreReadAndOthersRefused) {
  EXPECT_EQ(parse_matmul_precision("f32"), MatmulPrecision::kF32);
  EXPECT_EQ(parse_matmul_precision("tf32"), MatmulPrecision::kTf32);
  EXPECT_THROW(parse_matmul_precision("bf16"), InputError);
}

TEST(MatmulPrecision, TheCpuSaysThatItHasNoTf32) {
  std::vector<std::string> said;
  const auto log = [&](const std::string& words) { said.push_back(words); };
  make_allocator({}, {.log = log});
  EXPECT_TRUE(said.empty());
  make_allocator({}, {.matmul = MatmulPrecision::kTf32, .log = log});
  ASSERT_EQ(said.size(), 1u);
  EXPECT_NE(said.front().find("CPU"), std::string::npos);
}

}  // namespace
}  // namespace kvloom
