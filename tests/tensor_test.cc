#include "core/tensor.h"

#include <gtest/gtest.h>

namespace kvloom {
namespace {

TEST(Tensor, RowsAreAViewOfTheSameMemory) {
  CachingCpuAllocator allocator;
  Tensor tensor = Tensor::zeros(allocator, {4, 3}, DType::kF32);
  Tensor rows = tensor.rows(1, 3);
  rows.as<float>()[0] = 7;
  EXPECT_EQ(tensor.as<float>()[3], 7);
  EXPECT_EQ(rows.shape(), (Shape{2, 3}));
}

TEST(Tensor, ReadingAnotherTypeIsRefused) {
  CachingCpuAllocator allocator;
  Tensor tensor = Tensor::zeros(allocator, {4}, DType::kF32);
  EXPECT_THROW(tensor.as<BFloat16>(), Error);
  EXPECT_THROW(tensor.rows(2, 5), Error);
  EXPECT_THROW(tensor.reshaped({3}), Error);
}

TEST(Allocator, CountsWhatIsHeldAndReusesWhatWasFreed) {
  CachingCpuAllocator allocator;
  const void* first = nullptr;
  {
    Tensor tensor = Tensor::empty(allocator, {1000}, DType::kF32);
    first = tensor.data();
    EXPECT_GE(allocator.statistics().held_bytes, 4000u);
  }
  EXPECT_EQ(allocator.statistics().held_bytes, 0u);
  Tensor again = Tensor::empty(allocator, {1000}, DType::kF32);
  EXPECT_EQ(again.data(), first);
  EXPECT_GE(allocator.statistics().peak_bytes, 4000u);
}

}  // namespace
}  // namespace kvloom
