// A long text cut into pieces has the ids of the whole.
#include "infer/text_cut.h"

#include <gtest/gtest.h>

#include "infer/tokenizer.h"
#include "tests/support/random.h"
#include "tests/support/tokenizer_fixture.h"

namespace kvloom {
namespace {

using Ids = std::vector<std::int32_t>;

std::string repeated(test::Random& random, const std::vector<std::string>& parts, std::size_t bytes) {
  std::string text;
  while (text.size() < bytes) {
    text += parts[static_cast<std::size_t>(random.integer(0, static_cast<std::int64_t>(parts.size()) - 1))];
  }
  return text;
}

// The ids of all pieces of about `size` bytes, cut one after the other.
Ids piecewise(const Tokenizer& tokenizer, const std::string& text, std::size_t size, int* pieces = nullptr) {
  Ids ids;
  Place place = Place::kStart;
  for (std::size_t at = 0; at < text.size();) {
    std::size_t window = size;
    std::size_t cut = 0;
    std::size_t tried = 0;
    while (cut == 0 && at + window < text.size()) {
      cut = find_cut(tokenizer, std::string_view(text).substr(at, window), tried);
      tried = window - std::min(window, kCutContext);
      window += size;
    }
    if (cut == 0) cut = text.size() - at;
    tokenizer.encode(std::string_view(text).substr(at, cut), place, ids);
    place = Place::kMiddle;
    at += cut;
    if (pieces != nullptr) ++*pieces;
  }
  return ids;
}

std::vector<std::string> hard_texts(test::Random& random) {
  const std::vector<std::string> words = {"map ",  "source ", "layers, ", "read. ",
                                          "I'll ", "x=1; ",   "naïve ",   "12345 "};
  return {
      repeated(random, words, 40000),
      repeated(random, {"one two\n", "three.\n", "\n", "\n\n", "  indented\n", "\tdeep\n", "end! \n", "7\n"}, 40000),
      repeated(random, {"a line\r\n", "another one.\r\n", "\r\n", "  more\r\n"}, 40000),
      repeated(random, {"日本語", "の文章", "。", "，", "漢字 ", "かな"}, 40000),
      repeated(random, {"привет ", "мир, ", "🙂", "e\xcc\x81 ", "\xff\xfe ", "<|im_start|>user\n", "</s>"}, 40000)};
}

class CutPieces : public ::testing::TestWithParam<const char*> {};

TEST_P(CutPieces, HaveTheIdsOfTheWhole) {
  test::Random random;
  const auto tokenizer = load_huggingface(test::tokenizer_fixtures() / GetParam());
  for (const std::string& text : hard_texts(random)) {
    const Ids whole = tokenizer->encode(text);
    int pieces = 0;
    EXPECT_EQ(piecewise(*tokenizer, text, 3000, &pieces), whole) << text.substr(0, 40);
    // It strips white space from the ends of every text: nothing can be cut.
    const bool strips = std::string(GetParam()) == "metaspace";
    EXPECT_GT(pieces, strips ? 0 : 5) << text.substr(0, 40);
  }
}

INSTANTIATE_TEST_SUITE_P(Tokenizers, CutPieces,
                         ::testing::Values("gpt2", "llama2", "llama3", "qwen", "deepseek", "gemma", "metaspace",
                                           "mistral", "starcoder", "bloom"));

// A later field of a SentencePiece model counts: its normalizer puts a space before every text.
std::string with_dummy_prefix(const std::string& model) { return model + std::string("\x1a\x02\x18\x01", 4); }

TEST(CutPieces, OfSentencePieceGetNoSpaceBeforeThem) {
  test::Random random;
  const std::vector<std::string> texts = hard_texts(random);
  const std::string own = train_sentencepiece(texts, {.vocab = 420});
  for (const std::string& model : {own, with_dummy_prefix(own)}) {
    const auto tokenizer = make_tokenizer("sentencepiece", model, "test");
    const bool has_prefix = tokenizer->encode("map") == make_tokenizer("sentencepiece", own, "test")->encode(" map");
    EXPECT_EQ(has_prefix, model != own);
    for (const std::string& text : texts) {
      EXPECT_EQ(piecewise(*tokenizer, text, 3000), tokenizer->encode(text)) << text.substr(0, 40);
    }
  }
}

TEST(FindCut, FindsNoneWhereThereIsNoneAndLooksOnlyBehindWhatWasTried) {
  const auto tokenizer = load_huggingface(test::tokenizer_fixtures() / "gpt2");
  EXPECT_EQ(find_cut(*tokenizer, std::string(5000, 'x'), 0), 0u);
  const std::string text = "some words" + std::string(5000, 'x');
  EXPECT_EQ(find_cut(*tokenizer, text, 0), 4u);
  EXPECT_EQ(find_cut(*tokenizer, text, 100), 0u);
  EXPECT_EQ(find_cut(*make_byte_tokenizer(), "ab\xc3\xa9", 0), 2u) << "between characters";
}

TEST(TrainSentencePiece, TakesLinesOfAnyLength) {
  test::Random random;
  const std::vector<std::string> words = {"upward ", "downward. ", "windowed ", "sandwich ", "lasagna! ", "pizza "};
  const std::string line = repeated(random, words, 60000);
  const std::string model = train_sentencepiece({line}, {.vocab = 320});
  const auto tokenizer = make_tokenizer("sentencepiece", model, "test");
  EXPECT_EQ(tokenizer->vocab(), 320);
  EXPECT_LT(tokenizer->encode(line).size(), line.size() / 4) << "it knows the words";
  const std::string blob = repeated(random, {"ab", "bc", "漢"}, 60000);  // no word ends
  EXPECT_EQ(make_tokenizer("sentencepiece", train_sentencepiece({blob}, {.vocab = 300}), "test")->vocab(), 300);
}

}  // namespace
}  // namespace kvloom
