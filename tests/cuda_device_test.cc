// Streams, copies and memory of a GPU, where there is one.
#include <gtest/gtest.h>

#include <cstring>

#include "core/cuda_allocator.h"
#include "core/cuda_stream.h"
#include "kernels/error.h"
#include "tests/support/random.h"

namespace kvloom {
namespace {

constexpr std::size_t kMebibyte = 1U << 20;

class CudaMemory : public ::testing::Test {
 protected:
  void SetUp() override {
    const CudaPresence presence = cuda_presence();
    if (presence.devices == 0) GTEST_SKIP() << presence.reason;
  }
};

TEST_F(CudaMemory, CopiesThroughTheDeviceBringBackWhatWasSent) {
  test::Random random;
  const CudaStream stream(0);
  CachingCudaAllocator allocator(0);
  for (const std::size_t bytes : {std::size_t{1}, std::size_t{4099}, 3 * kMebibyte + 5}) {
    PinnedBuffer out(bytes), back(bytes);
    for (std::size_t i = 0; i < bytes; ++i) out.data()[i] = static_cast<std::byte>(random.engine()());
    void* block = allocator.allocate(bytes);
    EXPECT_TRUE(is_device_memory(block));
    EXPECT_FALSE(is_device_memory(out.data()));
    const StreamBuffer middle(stream, bytes);
    stream.fill_zero(block, bytes);
    stream.copy(middle.data(), out.data(), bytes);
    stream.copy(block, middle.data(), bytes);
    stream.copy(back.data(), block, bytes);
    CudaEvent event(0);
    event.record(stream);
    event.wait();
    EXPECT_TRUE(event.reached());
    EXPECT_TRUE(stream.idle());
    EXPECT_EQ(std::memcmp(out.data(), back.data(), bytes), 0);
    allocator.release(block, bytes);
  }
  EXPECT_EQ(allocator.statistics().held_bytes, 0);
  EXPECT_GE(allocator.statistics().peak_bytes, 3 * kMebibyte);
}

TEST_F(CudaMemory, MoreThanTheDeviceHasIsRefusedWithTheReason) {
  CachingCudaAllocator allocator(0);
  EXPECT_THROW(allocator.allocate(std::size_t{1} << 50), Error);
  void* block = allocator.allocate(100);  // and the next call is not spoilt
  allocator.release(block, 100);
}

TEST_F(CudaMemory, ADeviceThatIsNotThereIsNamed) { EXPECT_THROW(CachingCudaAllocator(1000), Error); }

}  // namespace
}  // namespace kvloom
