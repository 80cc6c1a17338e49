// A verb of `kvloom` run as a user runs it, in a folder of its own: what it prints, and how it refuses mistakes.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/process.h"
#include "tests/support/temporary_folder.h"

namespace kvloom::test {

using Words = std::vector<std::string>;

class VerbTest : public ::testing::Test {
 protected:
  explicit VerbTest(std::string verb) : verb_(std::move(verb)) {}

  // `kvloom <verb> <words>`, run in folder().
  virtual ProcessResult run(const Words& words) { return run_in(folder_.path(), words); }

  ProcessResult run_in(const std::filesystem::path& folder, const Words& words) const {
    Words command = {KVLOOM_BINARY, verb_};
    command.insert(command.end(), words.begin(), words.end());
    ProcessOptions options;
    options.folder = folder;
    return run_process(command, options);
  }

  // What it prints when nothing is wrong.
  std::string printed(const Words& words) {
    const ProcessResult result = run(words);
    EXPECT_EQ(result.status, 0) << result.error;
    EXPECT_EQ(result.error, "");
    return result.output;
  }

  nlohmann::json json(Words words) {
    words.push_back("--json");
    return nlohmann::json::parse(printed(words));
  }

  // One line that begins with the verb and holds `reason`, status 2, and nothing printed.
  void expect_refused(const Words& words, const std::string& reason) {
    const ProcessResult result = run(words);
    EXPECT_EQ(result.status, 2) << result.error;
    EXPECT_EQ(result.error_lines(), 1) << result.error;
    EXPECT_THAT(result.error, ::testing::StartsWith("kvloom " + verb_ + ": "));
    EXPECT_THAT(result.error, ::testing::HasSubstr(reason));
    EXPECT_EQ(result.output, "");
  }

  const TemporaryFolder& folder() const { return folder_; }

 private:
  std::string verb_;
  TemporaryFolder folder_;
};

}  // namespace kvloom::test
