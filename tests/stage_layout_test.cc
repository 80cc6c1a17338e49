#include "parallel/stage_layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/error.h"

namespace kvloom {
namespace {

using ::testing::ElementsAre;

TEST(StageLayout, EveryLayerIsOnTheStageThatHoldsIt) {
  const StageLayout layout(2, {0, 1, 4, 6, 9});
  EXPECT_EQ(layout.ranks(), 2);
  EXPECT_EQ(layout.stages(), 4);
  EXPECT_EQ(layout.layers(), 9);
  for (int stage = 0; stage < 4; ++stage) {
    for (int layer = layout.first_layer(stage); layer < layout.end_layer(stage); ++layer) {
      EXPECT_EQ(layout.stage_of_layer(layer), stage);
      EXPECT_EQ(layout.rank_of_layer(layer), stage % 2);
    }
  }
  EXPECT_THROW(layout.stage_of_layer(9), Error);
  EXPECT_THROW(layout.stage_of_layer(-1), Error);
}

TEST(StageLayout, EvenStagesDifferByOneLayerAtMostTheLargerOnesAtTheBottom) {
  EXPECT_THAT(StageLayout::even(22, 4).boundaries(), ElementsAre(0, 6, 12, 17, 22));
  EXPECT_THAT(StageLayout::even(8, 2, 2).boundaries(), ElementsAre(0, 2, 4, 6, 8));
  for (int layers = 1; layers <= 24; ++layers) {
    for (int ranks = 1; ranks <= layers; ++ranks) {
      const StageLayout layout = StageLayout::even(layers, ranks);
      EXPECT_EQ(layout.layers(), layers);
      EXPECT_EQ(layout.stages(), ranks);
      for (int stage = 0; stage < ranks; ++stage) {
        const int size = layout.end_layer(stage) - layout.first_layer(stage);
        EXPECT_EQ(size, layers / ranks + (stage < layers % ranks ? 1 : 0));
      }
    }
  }
}

TEST(StageLayout, WhatIsNoLayoutIsRefused) {
  EXPECT_THROW(StageLayout(1, {0}), InputError);
  EXPECT_THROW(StageLayout(1, {}), InputError);
  EXPECT_THROW(StageLayout(2, {1, 2, 3}), InputError);
  EXPECT_THROW(StageLayout(2, {0, 2, 2}), InputError);
  EXPECT_THROW(StageLayout(2, {0, 3, 2}), InputError);
  EXPECT_THROW(StageLayout(2, {0, 1, 2, 3}), InputError);
  EXPECT_THROW(StageLayout(0, {0, 1}), InputError);
  EXPECT_THROW(StageLayout::even(3, 4), InputError);
  EXPECT_THROW(StageLayout::even(3, 2, 2), InputError);
  EXPECT_THROW(StageLayout::even(3, 0), InputError);
}

}  // namespace
}  // namespace kvloom
