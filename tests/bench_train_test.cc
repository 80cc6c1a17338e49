// `kvloom bench train` where a map's memory runs out: the others are measured all the same.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/support/process.h"
#include "tests/support/sanitized.h"
#include "tests/support/temporary_folder.h"

namespace kvloom {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

// 16 layers whose K and V take half of the parameters, 1 GB with gradients and moments for `none`; with the program
// itself more than there may be, which `cla:16` needs two thirds of.
test::ProcessResult bench_in_little_memory(const std::vector<std::string>& more) {
  std::vector<std::string> words = {"env", "OMP_NUM_THREADS=1", KVLOOM_BINARY, "bench", "train", "--precision", "f32"};
  for (const char* word : {"--layers", "16", "--hidden", "1024", "--ffn", "16", "--heads", "8", "--kv-heads", "8",
                           "--vocab", "64", "--context", "16", "--micro-batch", "1", "--steps", "1"}) {
    words.emplace_back(word);
  }
  words.insert(words.end(), more.begin(), more.end());
  const TemporaryFolder folder;
  return test::run_process(words, {.folder = folder.path(), .address_space = 1150000000});
}

class BenchTrain : public ::testing::Test {
 protected:
  void SetUp() override {
    if (test::kSanitized) GTEST_SKIP() << "a sanitizer takes more addresses than there may be";
  }
  const std::string no_memory_ = "cpu: out of memory asking for ";
};

TEST_F(BenchTrain, GoesOnAfterAMapThatTakesTooMuchMemory) {
  const test::ProcessResult result = bench_in_little_memory({"--maps", "none", "cla:16", "--json"});
  EXPECT_EQ(result.status, 1) << result.error;
  EXPECT_THAT(result.error, StartsWith("kvloom bench train: 1 of 2 maps could not be measured: " + no_memory_));
  EXPECT_EQ(result.error_lines(), 1) << result.error;
  const auto maps = nlohmann::json::parse(result.output)["maps"];
  ASSERT_EQ(maps.size(), 2u);
  EXPECT_EQ(maps[0]["map"], "none");
  EXPECT_THAT(maps[0]["error"].get<std::string>(), StartsWith(no_memory_));
  EXPECT_FALSE(maps[0].contains("peak_bytes"));
  EXPECT_EQ(maps[1]["map"], "cla:16");
  EXPECT_GT(maps[1]["peak_bytes"], 0);
}

TEST_F(BenchTrain, SaysWhichMapTimesAreRelativeToAfterOneThatFailed) {
  const test::ProcessResult result = bench_in_little_memory({"--maps", "none", "cla:16"});
  EXPECT_EQ(result.status, 1) << result.error;
  const std::size_t failed = result.output.find("none                   " + no_memory_);
  const std::size_t relative = result.output.find("relative to cla:16 from here on");
  const std::size_t measured = result.output.find("\ncla:16 ");
  EXPECT_LT(failed, relative) << result.output;
  EXPECT_LT(relative, measured) << result.output;
  EXPECT_NE(measured, std::string::npos) << result.output;
}

TEST_F(BenchTrain, RefusesAWrongMapBeforeAnyIsMeasured) {
  const test::ProcessResult result = bench_in_little_memory({"--maps", "none", "cla:17"});
  EXPECT_EQ(result.status, 2) << result.error;
  EXPECT_EQ(result.output, "");
  EXPECT_THAT(result.error, HasSubstr("cla:17"));
}

}  // namespace
}  // namespace kvloom
