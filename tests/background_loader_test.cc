// The loader hands on what its reader makes, in order, reads ahead no further than told, and never hangs.
#include "train/background_loader.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>

#include "tests/support/random.h"

namespace kvloom {
namespace {

MicroBatch numbered(std::uint64_t index) {
  return {.tokens = {static_cast<std::int32_t>(index)}, .targets = {static_cast<std::int32_t>(index) + 1}};
}

void pause(int microseconds) { std::this_thread::sleep_for(std::chrono::microseconds(microseconds)); }

TEST(BackgroundLoader, GivesEveryMicroBatchOnceInOrder) {
  test::Random random;
  for (const std::size_t ahead : {1, 2, 7}) {
    const int slow_reader = static_cast<int>(random.integer(0, 100));
    const int slow_user = static_cast<int>(random.integer(0, 100));
    BackgroundLoader loader(
        [&](std::uint64_t index) {
          pause(slow_reader);
          return numbered(index);
        },
        5, ahead);
    for (std::int32_t index = 5; index < 105; ++index) {
      pause(slow_user);
      const MicroBatch batch = loader.next();
      ASSERT_EQ(batch.tokens, std::vector<std::int32_t>{index});
      ASSERT_EQ(batch.targets, std::vector<std::int32_t>{index + 1});
    }
  }
}

TEST(BackgroundLoader, ReadsAheadButNoFurtherThanTold) {
  std::atomic<std::uint64_t> read{0};
  BackgroundLoader loader(
      [&](std::uint64_t index) {
        ++read;
        return numbered(index);
      },
      0, 3);
  while (read < 3) pause(100);
  pause(20'000);
  EXPECT_EQ(read, 3u);
  loader.next();
  while (read < 4) pause(100);
  pause(20'000);
  EXPECT_EQ(read, 4u);
}

TEST(BackgroundLoader, WhatTheReaderThrowsComesOutWhereItBelongs) {
  BackgroundLoader loader(
      [](std::uint64_t index) {
        if (index == 2) throw std::runtime_error("disk gone");
        return numbered(index);
      },
      0, 8);
  EXPECT_EQ(loader.next().tokens.front(), 0);
  EXPECT_EQ(loader.next().tokens.front(), 1);
  EXPECT_THROW(loader.next(), std::runtime_error);
  EXPECT_THROW(loader.next(), std::runtime_error);
}

TEST(BackgroundLoader, EndsWhileItsQueueIsFullAndWhileItReads) {
  for (const int wait : {0, 2'000}) {
    const BackgroundLoader loader(
        [](std::uint64_t index) {
          pause(1'000);
          return numbered(index);
        },
        0, 1);
    pause(wait);
  }
}

}  // namespace
}  // namespace kvloom
