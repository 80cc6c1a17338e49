// Every verb explains itself: --help ends with examples, whose options exist.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "tests/support/process.h"
#include "tests/support/temporary_folder.h"

namespace kvloom {
namespace {

using ::testing::HasSubstr;
using Words = std::vector<std::string>;

std::string help(const Words& verb) {
  const TemporaryFolder folder;
  Words command = {KVLOOM_BINARY};
  command.insert(command.end(), verb.begin(), verb.end());
  command.push_back("--help");
  test::ProcessOptions options;
  options.folder = folder.path();
  const test::ProcessResult result = test::run_process(command, options);
  EXPECT_EQ(result.status, 0) << result.error;
  EXPECT_EQ(result.error, "");
  return result.output;
}

Words words_of(const std::string& line) {
  std::istringstream stream(line);
  return {std::istream_iterator<std::string>(stream), {}};
}

Words lines_from(const std::string& text, const std::string& mark) {
  std::istringstream stream(text.substr(std::min(text.find(mark), text.size())));
  Words lines;
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

// The first words of the lines under "Subcommands:".
std::vector<std::string> verbs_of(const std::string& text) {
  Words verbs;
  for (const std::string& line : lines_from(text, "Subcommands:\n")) {
    if (line.empty()) break;
    if (line.starts_with("  ")) verbs.push_back(words_of(line).front());
  }
  return verbs;
}

TEST(Help, OfEveryVerbEndsWithExamplesWhoseOptionsExist) {
  const Words verbs = verbs_of(help({}));
  ASSERT_GE(verbs.size(), 7);
  for (const std::string& verb : verbs) {
    const std::string text = help({verb});
    const Words examples = lines_from(text, "Example: ");
    ASSERT_FALSE(examples.empty()) << verb;
    for (const std::string& example : examples) {
      EXPECT_THAT(example, ::testing::StartsWith("Example: ")) << verb;
      EXPECT_THAT(example, HasSubstr("kvloom " + verb + " "));
      std::string known = text;
      for (const std::string& inner : verbs_of(text)) known += help({verb, inner});
      // Only options of the verb, not of mpirun before it.
      for (const std::string& word : words_of(example.substr(example.find("kvloom ")))) {
        if (word.starts_with("--")) {
          EXPECT_THAT(known, HasSubstr("\n  " + word + " ")) << example;
        }
      }
    }
  }
}

TEST(Help, WithoutAVerbNamesAFirstRun) {
  const std::string text = help({});
  for (const char* verb : {"kvloom tokenize ", "kvloom train ", "kvloom generate "}) {
    EXPECT_THAT(text, HasSubstr(verb));
  }
}

}  // namespace
}  // namespace kvloom
