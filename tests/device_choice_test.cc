#include "core/device_choice.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "kernels/error.h"
#include "tests/support/thrown.h"

namespace kvloom {
namespace {

TEST(DeviceChoice, NamesAreReadAndOthersRefused) {
  EXPECT_EQ(parse_device("cpu"), Device{});
  EXPECT_EQ(parse_device("cuda").kind, Device::Kind::kCuda);
  EXPECT_EQ(parse_device("cuda:3").index, 3);
  for (const char* text : {"", "gpu", "cuda:", "cuda:-1", "cuda:1x"}) EXPECT_THROW(parse_device(text), InputError);
}

TEST(DeviceChoice, AGpuWithTooLittleSharedMemoryIsRefused) {
  const Device device{Device::Kind::kCuda, 1};
  EXPECT_NO_THROW(require_fit(device, {"NVIDIA A100-SXM4-40GB", 163 << 10}));
  EXPECT_NO_THROW(require_fit(device, {"NVIDIA H100 80GB HBM3", 227 << 10}));
  EXPECT_THROW(require_fit(device, {"NVIDIA A10", 99 << 10}), InputError);
  EXPECT_EQ(
      test::message_of([&] {
        require_fit(device, {"NVIDIA A10", 99 << 10});
      }),
      "input: device: cuda:1: NVIDIA A10 has 99 KiB of shared memory a block; right is one with 163 KiB or more (A100, "
      "H100, B200)");
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
