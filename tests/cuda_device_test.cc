// Streams, copies and memory of a GPU, where there is one.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "core/cuda_allocator.h"
#include "core/cuda_stream.h"
#include "core/out_of_memory.h"
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

TEST_F(CudaMemory, ABufferOfAStreamAsksForRoomOnceAndSaysWhatItLacks) {
  const CudaStream stream(0);
  int asked = 0;
  try {
    const StreamBuffer buffer(stream, std::size_t{1} << 50, [&] { ++asked; });
    FAIL() << "a device of a pebibyte";
  } catch (const OutOfMemory& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr("cuda:0: out of memory asking for 1073741824.0 MiB"));
    EXPECT_THAT(error.what(), ::testing::EndsWith("lower what is worked on at once"));
  }
  EXPECT_EQ(asked, 1);
  EXPECT_THROW(StreamBuffer(stream, std::size_t{1} << 50), OutOfMemory);
  const StreamBuffer small(stream, 100, [&] { ++asked; });  // and the next call is not spoilt
  EXPECT_EQ(asked, 1);
}

TEST_F(CudaMemory, TrimGivesBackWhatIsHeldFreeAndNothingElse) {
  CachingCudaAllocator allocator(0);
  void* kept = allocator.allocate(30 * kMebibyte);
  allocator.release(allocator.allocate(50 * kMebibyte), 50 * kMebibyte);
  EXPECT_GE(allocator.statistics().cached_bytes, 50 * kMebibyte);
  allocator.trim();
  EXPECT_EQ(allocator.statistics().cached_bytes, 0);
  EXPECT_GE(allocator.statistics().held_bytes, 30 * kMebibyte);
  EXPECT_TRUE(is_device_memory(kept));
  allocator.release(kept, 30 * kMebibyte);
}

TEST_F(CudaMemory, ADeviceThatIsNotThereIsNamed) { EXPECT_THROW(CachingCudaAllocator(1000), Error); }

}  // namespace
}  // namespace kvloom
