#include "core/device_choice.h"

#include <gtest/gtest.h>

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
  EXPECT_THROW(make_allocator({}, {.choice = AttentionChoice::kCudnn}), InputError);
  EXPECT_NE(make_allocator({}, {.choice = AttentionChoice::kAuto}), nullptr);
  EXPECT_NE(make_allocator({}, {.choice = AttentionChoice::kKvloom}), nullptr);
}

}  // namespace
}  // namespace kvloom
