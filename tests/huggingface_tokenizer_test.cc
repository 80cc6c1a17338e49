// Hugging Face's tokenizers give the ids and the text that the reference gave (tests/fixtures/tokenizers/make.py).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "infer/tokenizer.h"
#include "kernels/error.h"
#include "tests/support/random.h"
#include "tests/support/tokenizer_fixture.h"

namespace kvloom {
namespace {

using ::testing::HasSubstr;

const std::vector<std::string>& corpus() {
  static const std::vector<std::string> lines = test::tokenizer_corpus();
  return lines;
}

class Reference : public ::testing::TestWithParam<const char*> {
 protected:
  Reference()
      : tokenizer_(load_huggingface(test::tokenizer_fixtures() / GetParam())),
        expected_(test::expected_lines(GetParam(), corpus())) {}

  std::unique_ptr<Tokenizer> tokenizer_;
  test::ExpectedLines expected_;
};

TEST_P(Reference, IdsOfEveryLineAreThoseOfTheReference) {
  int wrong = 0;
  for (std::size_t i = 0; i < expected_.lines.size(); ++i) {
    const auto ids = tokenizer_->encode(corpus()[i]);
    if (ids == expected_.lines[i].ids) continue;
    ++wrong;
    if (wrong <= 5) {
      ADD_FAILURE() << "line " << i << " of corpus.gz: " << ::testing::PrintToString(corpus()[i]) << "\n  ids "
                    << ::testing::PrintToString(ids) << "\n  not " << ::testing::PrintToString(expected_.lines[i].ids);
    }
  }
  EXPECT_EQ(wrong, 0) << "of " << expected_.lines.size() << " lines";
}

TEST_P(Reference, TextOfEveryLineIsThatOfTheReferenceAlsoAsAStream) {
  int wrong = 0;
  for (std::size_t i = 0; i < expected_.lines.size(); ++i) {
    const test::ExpectedLine& line = expected_.lines[i];
    const std::string text = tokenizer_->decode(line.ids);
    StreamDecoder stream(*tokenizer_);
    std::string streamed;
    for (const std::int32_t id : line.ids) {
      const std::string ready = stream.push(id);
      ASSERT_TRUE(is_well_formed(ready)) << "line " << i;
      streamed += ready;
    }
    streamed += stream.finish();
    if (text == line.text && streamed == line.text) continue;
    ++wrong;
    if (wrong <= 5) {
      ADD_FAILURE() << "line " << i << " of corpus.gz: " << ::testing::PrintToString(text) << "\n  as a stream "
                    << ::testing::PrintToString(streamed) << "\n  not " << ::testing::PrintToString(line.text);
    }
  }
  EXPECT_EQ(wrong, 0) << "of " << expected_.lines.size() << " lines";
}

TEST_P(Reference, PutsAroundATextWhatTheReferencePuts) {
  std::vector<std::int32_t> ids = tokenizer_->start_ids();
  tokenizer_->encode("x", ids);
  const std::vector<std::int32_t> end = tokenizer_->end_ids();
  ids.insert(ids.end(), end.begin(), end.end());
  EXPECT_EQ(ids, expected_.x);
}

INSTANTIATE_TEST_SUITE_P(All, Reference,
                         ::testing::Values("gpt2", "llama2", "llama3", "qwen", "mistral", "gemma", "metaspace",
                                           "accents", "deepseek", "starcoder", "behaviours"),
                         [](const auto& instance) { return std::string(instance.param); });

}  // namespace
}  // namespace kvloom
