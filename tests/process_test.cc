// What tests of several processes rely on (support/process.h).
#include "tests/support/process.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/temporary_folder.h"

namespace kvloom {
namespace {

using ::testing::HasSubstr;

constexpr const char* kStarts = "KVLOOM_TEST_STARTS";

// Runs the test below in a process that starts itself again.
test::ProcessResult run_twice(std::vector<std::string> words) {
  const TemporaryFolder folder;
  test::ProcessOptions options;
  options.folder = folder.path();
  words.push_back(std::filesystem::read_symlink("/proc/self/exe"));
  words.insert(words.end(), {"--gtest_filter=*ThatStartsAgain", "--gtest_also_run_disabled_tests", "", "last word"});
  setenv(kStarts, "once", 1);
  const test::ProcessResult result = test::run_process(words, options);
  unsetenv(kStarts);
  return result;
}

TEST(Process, DISABLED_ThatStartsAgain) {
  const char* starts = std::getenv(kStarts);
  if (starts != nullptr && starts == std::string("once")) {
    setenv(kStarts, "twice", 1);
    test::start_again();
    FAIL() << "could not be started again";
  }
  EXPECT_THAT(test::content_of("/proc/self/cmdline"), ::testing::EndsWith(std::string("\0\0last word\0", 12)));
  std::puts("started twice");
}

TEST(Process, StartsAgainInTheSameWords) {
  const test::ProcessResult result = run_twice({});
  EXPECT_EQ(result.status, 0) << result.output;
  EXPECT_THAT(result.output, HasSubstr("started twice"));
}

TEST(Process, StartsAgainWhereADynamicLoaderStartedIt) {
  const std::string loader = "/lib64/ld-linux-x86-64.so.2";
  if (!std::filesystem::exists(loader)) GTEST_SKIP() << "there is no " << loader;
  const test::ProcessResult result = run_twice({loader, "--inhibit-cache"});
  EXPECT_EQ(result.status, 0) << result.output << result.error;
  EXPECT_THAT(result.output, HasSubstr("started twice"));
}

}  // namespace
}  // namespace kvloom
