// What a person sees while something runs: lines apart in time where no terminal is, and bytes as they are done.
#include "launch/terminal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "infer/tokenize/pipeline.h"
#include "tests/support/random.h"
#include "tests/support/temporary_folder.h"

namespace kvloom {
namespace {

using ::testing::HasSubstr;

std::vector<std::string> lines_of(const std::string& text) {
  std::istringstream stream(text);
  std::vector<std::string> lines;
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

TEST(ProgressLine, WithoutATerminalIsSilentAtFirstAndThenSaysALineNowAndThen) {
  ::testing::internal::CaptureStderr();  // a file
  ProgressLine soon(std::chrono::milliseconds(50));
  soon.update("too early");
  std::this_thread::sleep_for(std::chrono::milliseconds(60));
  soon.update("first");
  soon.update("too soon after it");
  std::this_thread::sleep_for(std::chrono::milliseconds(60));
  soon.update("second");
  soon.end();
  ProgressLine usual;
  for (int i = 0; i < 1000; ++i) usual.update("done before anyone asks");
  usual.end();
  EXPECT_EQ(lines_of(::testing::internal::GetCapturedStderr()), (std::vector<std::string>{"first", "second"}));
}

TEST(Tokenize, SaysHowFarItIsWithinASingleFile) {
  const TemporaryFolder folder;
  constexpr std::size_t kBytes = std::size_t{36} << 20;
  folder.write("large.txt", std::string(kBytes, 'x'));
  std::vector<std::string> said;
  tokenize({.inputs = {(folder / "large.txt").string()},
            .output = folder / "tokens.h5",
            .progress = [&](const std::string& line) { said.push_back(line); }});
  ASSERT_GE(said.size(), 3);
  EXPECT_THAT(said.front(), ::testing::MatchesRegex("encoded 1[56]\\.. MiB of 36.0 MiB"));
  EXPECT_EQ(said.back(), "encoded 36.0 MiB of 36.0 MiB");
}

}  // namespace
}  // namespace kvloom
