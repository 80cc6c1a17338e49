#include "data/dataset.h"

#include <gtest/gtest.h>

#include <set>

#include "kernels/cross_entropy.h"
#include "tests/support/random.h"
#include "tests/support/temporary_folder.h"

namespace kvloom {
namespace {

// Tokens 0, 1, 2, ...: a token says where it stands.
TokenFile counting_file(const TemporaryFolder& folder, std::int32_t training, std::int32_t validation) {
  TokenFileWriter writer(folder / "tokens.h5", {.vocab = 1 << 20, .tokenizer_kind = "bytes"});
  for (const auto& [part, count] : {std::pair(Part::kTraining, training), std::pair(Part::kValidation, validation)}) {
    std::vector<std::int32_t> tokens(static_cast<std::size_t>(count));
    for (std::int32_t i = 0; i < count; ++i) tokens[static_cast<std::size_t>(i)] = i;
    writer.begin_document(part);
    writer.append(part, tokens, tokens.size());
  }
  writer.finish();
  return TokenFile(folder / "tokens.h5");
}

TEST(Permutation, HitsEveryIndexOnce) {
  test::Random random;
  for (std::uint64_t size : {1, 2, 3, 4, 5, 16, 17, 100, 1000, 4096, 4097}) {
    const Permutation permutation(size, static_cast<std::uint64_t>(random.integer(0, 1 << 30)));
    std::set<std::uint64_t> seen;
    for (std::uint64_t i = 0; i < size; ++i) seen.insert(permutation(i));
    EXPECT_EQ(seen.size(), size);
    EXPECT_LT(*seen.rbegin(), size);
  }
}

TEST(TokenWindows, DoNotDependOnHowTheyAreCut) {
  test::Random random;
  const TemporaryFolder folder;
  const TokenFile file = counting_file(folder, 1001, 2);
  const TokenWindows windows(file, 10, random.seed());
  constexpr std::int64_t kCount = 250;  // two epochs and a half
  std::vector<std::int32_t> tokens(kCount * 10);
  std::vector<std::int32_t> targets(kCount * 10);
  windows.fill(0, kCount, tokens, targets);
  for (std::int64_t at = 0; at < kCount;) {
    const std::int64_t count = std::min(kCount - at, random.integer(1, 7));
    std::vector<std::int32_t> some(static_cast<std::size_t>(count * 10));
    std::vector<std::int32_t> wanted(some.size());
    windows.fill(at, count, some, wanted);
    EXPECT_TRUE(std::equal(some.begin(), some.end(), tokens.begin() + at * 10));
    EXPECT_TRUE(std::equal(wanted.begin(), wanted.end(), targets.begin() + at * 10));
    at += count;
  }
  for (std::size_t i = 0; i < tokens.size(); ++i) EXPECT_EQ(targets[i], tokens[i] + 1);
}

TEST(TokenWindows, AnEpochShowsEveryWindowOnceAndTheNextInAnotherOrder) {
  const TemporaryFolder folder;
  const TokenFile file = counting_file(folder, 1001, 2);
  const TokenWindows windows(file, 10, 5);
  ASSERT_EQ(windows.size(), 100);
  std::vector<std::vector<std::int32_t>> starts(2);
  for (std::int64_t n = 0; n < 200; ++n) {
    std::vector<std::int32_t> tokens(10);
    std::vector<std::int32_t> targets(10);
    windows.fill(n, 1, tokens, targets);
    starts[static_cast<std::size_t>(n / 100)].push_back(tokens[0]);
  }
  EXPECT_NE(starts[0], starts[1]);
  for (auto& epoch : starts) EXPECT_EQ(std::set<std::int32_t>(epoch.begin(), epoch.end()).size(), 100u);
}

TEST(TokenWindows, TooFewTokensAreRefusedWithTheNumberNeeded) {
  const TemporaryFolder folder;
  const TokenFile file = counting_file(folder, 10, 2);
  EXPECT_NO_THROW(TokenWindows(file, 9, 1));
  try {
    const TokenWindows windows(file, 10, 1);
    FAIL();
  } catch (const InputError& error) {
    EXPECT_NE(std::string(error.what()).find("11"), std::string::npos) << error.what();
  }
}

TEST(EvaluationWindows, MakeEachTokenATargetOnce) {
  for (const std::int32_t count : {2, 10, 11, 12, 37}) {
    const TemporaryFolder folder;
    const TokenFile file = counting_file(folder, 2, count);
    const EvaluationWindows windows(file, Part::kValidation, 10);
    std::vector<std::int32_t> seen;
    for (std::int64_t i = 0; i < windows.size(); ++i) {
      std::vector<std::int32_t> tokens(10);
      std::vector<std::int32_t> targets(10);
      windows.fill(i, tokens, targets);
      for (std::size_t t = 0; t < 10; ++t) {
        if (targets[t] == kIgnoredTarget) continue;
        EXPECT_EQ(targets[t], tokens[t] + 1);
        seen.push_back(targets[t]);
      }
    }
    ASSERT_EQ(seen.size(), static_cast<std::size_t>(count - 1));
    for (std::size_t i = 0; i < seen.size(); ++i) EXPECT_EQ(seen[i], static_cast<std::int32_t>(i + 1));
  }
}

}  // namespace
}  // namespace kvloom
