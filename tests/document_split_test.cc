#include "data/document_split.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <numeric>

#include "tests/support/random.h"

namespace kvloom {
namespace {

using Sizes = std::vector<std::uint64_t>;

std::uint64_t sum(const Sizes& sizes) { return std::accumulate(sizes.begin(), sizes.end(), std::uint64_t{0}); }

Sizes random_sizes(test::Random& random, std::int64_t documents, std::int64_t largest) {
  Sizes sizes;
  for (std::int64_t i = 0; i < documents; ++i) sizes.push_back(static_cast<std::uint64_t>(random.integer(0, largest)));
  return sizes;
}

TEST(DocumentSplit, HoldsOutHalfToAllOfTheFractionAndCutsAtMostOneDocument) {
  test::Random random;
  for (int round = 0; round < 2000; ++round) {
    const Sizes sizes = random_sizes(random, random.integer(1, 40), round % 2 == 0 ? 50 : 100000);
    const double fraction = static_cast<double>(random.integer(0, 50)) / 100;
    const Sizes training = split_documents(sizes, fraction, static_cast<std::uint64_t>(round));
    ASSERT_EQ(training.size(), sizes.size());
    int cut = 0;
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      ASSERT_LE(training[i], sizes[i]);
      if (training[i] != 0 && training[i] != sizes[i]) ++cut;
    }
    EXPECT_LE(cut, 1);
    const auto wanted = static_cast<std::uint64_t>(fraction * static_cast<double>(sum(sizes)));
    const std::uint64_t held_out = sum(sizes) - sum(training);
    EXPECT_LE(held_out, wanted);
    EXPECT_GE(2 * held_out, wanted);
  }
}

TEST(DocumentSplit, OneDocumentKeepsItsStartForTraining) {
  EXPECT_EQ(split_documents(Sizes{1000}, 0.1, 1), Sizes{900});
  EXPECT_EQ(split_documents(Sizes{0, 1000, 0}, 0.25, 7), (Sizes{0, 750, 0}));
  EXPECT_EQ(split_documents(Sizes{1000}, 0, 1), Sizes{1000});
  EXPECT_EQ(split_documents(Sizes{}, 0.1, 1), Sizes{});
  EXPECT_EQ(split_documents(Sizes{0, 0}, 0.1, 1), (Sizes{0, 0}));
}

TEST(DocumentSplit, ManySmallDocumentsAreTakenWhole) {
  test::Random random;
  const Sizes sizes = random_sizes(random, 1000, 500);
  const Sizes training = split_documents(sizes, 0.1, 3);
  for (std::size_t i = 0; i < sizes.size(); ++i) EXPECT_TRUE(training[i] == 0 || training[i] == sizes[i]) << i;
}

TEST(DocumentSplit, TheSeedChoosesAndEqualSeedsChooseTheSame) {
  const Sizes sizes(200, 10);
  EXPECT_EQ(split_documents(sizes, 0.2, 5), split_documents(sizes, 0.2, 5));
  EXPECT_NE(split_documents(sizes, 0.2, 5), split_documents(sizes, 0.2, 6));
}

// Over many seeds every document is held out about as often as any other.
TEST(DocumentSplit, FavoursNoDocument) {
  const Sizes sizes(20, 10);
  std::vector<int> chosen(sizes.size());
  constexpr int kSeeds = 4000;
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
    const Sizes training = split_documents(sizes, 0.25, seed);
    for (std::size_t i = 0; i < sizes.size(); ++i) chosen[i] += training[i] == 0 ? 1 : 0;
  }
  for (const int count : chosen) EXPECT_NEAR(count, kSeeds / 4, 200);
}

// Lengths do not matter either, as long as a document is small beside what is held out.
TEST(DocumentSplit, HoldsOutDocumentsOfAllLengthsAlike) {
  test::Random random;
  constexpr std::size_t kLengths = 3;
  constexpr std::array<std::uint64_t, kLengths> lengths = {1, 10, 100};
  Sizes sizes;
  for (int i = 0; i < 3000; ++i) sizes.push_back(lengths[static_cast<std::size_t>(random.integer(0, kLengths - 1))]);
  std::array<double, kLengths> all = {};
  std::array<double, kLengths> held_out = {};
  for (int round = 0; round < 40; ++round) {
    const auto seed = static_cast<std::uint64_t>(random.integer(0, 1 << 30));
    const Sizes training = split_documents(sizes, 0.25, seed);
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      const auto kind = static_cast<std::size_t>(std::ranges::find(lengths, sizes[i]) - lengths.begin());
      all[kind] += 1;
      held_out[kind] += training[i] == 0 ? 1 : 0;
    }
  }
  for (std::size_t kind = 0; kind < kLengths; ++kind) {
    EXPECT_NEAR(held_out[kind] / all[kind], 0.25, 0.02) << "of length " << lengths[kind];
  }
}

TEST(HeldOutBelow, IsTheShareOfTheDrawsAndAtLeastOneOfSeveral) {
  test::Random random;
  for (int round = 0; round < 50; ++round) {
    const auto count = static_cast<std::uint64_t>(random.integer(2, 3000));
    const double fraction = static_cast<double>(random.integer(1, 50)) / 100;
    const auto seed = static_cast<std::uint64_t>(random.integer(0, 1000));
    const double below = held_out_below(count, fraction, seed);
    std::uint64_t held_out = 0;
    for (std::uint64_t i = 0; i < count; ++i) held_out += draw_of(i, seed) < below ? 1 : 0;
    EXPECT_EQ(held_out, std::max<std::uint64_t>(1, static_cast<std::uint64_t>(fraction * static_cast<double>(count))));
  }
  EXPECT_EQ(held_out_below(1000, 0, 1), 0);
  EXPECT_EQ(held_out_below(1, 0.5, 1), 0) << "one document is for training";
  EXPECT_EQ(held_out_below(2'000'000, 0.25, 1), 0.25);
}

}  // namespace
}  // namespace kvloom
