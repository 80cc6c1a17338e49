#include "infer/tokenizer.h"

#include <gtest/gtest.h>

#include "kernels/error.h"
#include "tests/support/random.h"
#include "tests/support/temporary_folder.h"

namespace kvloom {
namespace {

const std::string& sample_model() {
  static const std::string model = [] {
    std::vector<std::string> texts;
    for (int i = 0; i < 300; ++i) {
      texts.push_back("template <typename T>\n\tvoid f" + std::to_string(i) + "(T x) {  return x + " +
                      std::to_string(i * i) + "; }\n");
    }
    return train_sentencepiece(texts, {.vocab = 320});
  }();
  return model;
}

std::vector<std::unique_ptr<Tokenizer>> tokenizers() {
  std::vector<std::unique_ptr<Tokenizer>> all;
  all.push_back(make_byte_tokenizer());
  all.push_back(make_tokenizer("sentencepiece", sample_model(), "test"));
  return all;
}

std::vector<std::string> nasty_texts(test::Random& random) {
  std::vector<std::string> texts = {"",
                                    " ",
                                    "   leading and trailing   ",
                                    "\n\n\t\t \n",
                                    "a\r\nb\r\n",
                                    "<s></s><unk><0x41>",
                                    "naïve café 日本語 한국어 العربية 🙂👩‍👩‍👧",
                                    std::string("nul\0in it", 9)};
  const std::vector<std::string> parts = {"x", " ", "  ", "\n", "\t", "日", "🙂", "template", "_1", "\x01", "é"};
  for (int i = 0; i < 50; ++i) {
    std::string text;
    for (std::int64_t n = random.integer(1, 30); n > 0; --n) {
      text += parts[static_cast<std::size_t>(random.integer(0, static_cast<std::int64_t>(parts.size()) - 1))];
    }
    texts.push_back(text);
  }
  return texts;
}

TEST(Tokenizer, TextComesBackByteForByteAndAsAStream) {
  test::Random random;
  for (const auto& tokenizer : tokenizers()) {
    for (const std::string& text : nasty_texts(random)) {
      const std::vector<std::int32_t> ids = tokenizer->encode(text);
      EXPECT_EQ(tokenizer->decode(ids), text) << tokenizer->kind();
      StreamDecoder stream(*tokenizer);
      std::string streamed;
      for (const std::int32_t id : ids) {
        const std::string ready = stream.push(id);
        // What is shown never ends inside a character.
        EXPECT_TRUE(ready.empty() || (static_cast<unsigned char>(ready.back()) & 0xc0) != 0xc0);
        streamed += ready;
      }
      EXPECT_EQ(streamed + stream.finish(), text);
    }
  }
}

TEST(Tokenizer, BytesTakeAnyBytes) {
  test::Random random;
  std::string bytes;
  for (int i = 0; i < 1000; ++i) bytes += static_cast<char>(random.integer(0, 255));
  const auto tokenizer = make_byte_tokenizer();
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(bytes)), bytes);
}

TEST(Tokenizer, SerialisedIsTheSameTokenizer) {
  for (const auto& tokenizer : tokenizers()) {
    const auto again = make_tokenizer(tokenizer->kind(), tokenizer->serialized(), "again");
    EXPECT_EQ(again->vocab(), tokenizer->vocab());
    EXPECT_EQ(again->separator(), tokenizer->separator());
    EXPECT_EQ(again->encode("void f(int x);"), tokenizer->encode("void f(int x);"));
  }
}

TEST(Tokenizer, WhatIsNoModelIsRefusedByName) {
  const TemporaryFolder folder;
  folder.write("bad.model", "this is no model");
  try {
    load_sentencepiece(folder / "bad.model");
    FAIL();
  } catch (const InputError& error) {
    EXPECT_NE(std::string(error.what()).find("bad.model"), std::string::npos) << error.what();
  }
  EXPECT_THROW(load_sentencepiece(folder / "missing.model"), InputError);
  EXPECT_THROW(make_tokenizer("words", "", "x"), InputError);
  EXPECT_THROW(make_byte_tokenizer()->decode(std::vector<std::int32_t>{257}), InputError);
}

TEST(SentencePieceTraining, SaysWhatVocabularyWouldBeRight) {
  const auto message_for = [](const std::vector<std::string>& texts, std::int64_t vocab) {
    try {
      train_sentencepiece(texts, {.vocab = vocab});
    } catch (const InputError& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  EXPECT_NE(message_for({"a short text"}, 5000).find("smaller"), std::string::npos);
  EXPECT_NE(message_for({"text"}, 10).find("300"), std::string::npos);
  EXPECT_EQ(message_for({"a short text"}, 5000).find('\n'), std::string::npos);
  EXPECT_EQ(message_for({"a short text"}, 5000).find(".cc"), std::string::npos);
}

}  // namespace
}  // namespace kvloom
