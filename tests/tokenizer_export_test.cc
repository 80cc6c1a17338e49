// kvloom's own tokenizers as files for transformers give the ids of the originals.
#include "infer/tokenizer_export.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "infer/tokenizer.h"
#include "tests/support/random.h"
#include "tests/support/tokenizer_fixture.h"

namespace kvloom {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

std::vector<std::string> texts_of(test::Random& random, int count) {
  const std::vector<std::string> parts = {
      "#include <a.h>\n", "layer ", "  ",   "\t", "reads ", "above, ", "日本", "é", "🙂", "12 ", "\r\n", "aaaa",
      "\xe2\x96\x81",     "Upward", "\x01", "ñ "};
  std::vector<std::string> texts;
  for (int i = 0; i < count; ++i) {
    std::string text;
    for (std::int64_t n = random.integer(1, 40); n > 0; --n) {
      text += parts[static_cast<std::size_t>(random.integer(0, static_cast<std::int64_t>(parts.size()) - 1))];
    }
    texts.push_back(text);
  }
  return texts;
}

// The tokenizer.json as any reader of such files has it: without the word of where it came from.
std::unique_ptr<Tokenizer> as_others_read(const ExportedTokenizer& exported) {
  const TemporaryFolder folder;
  for (const NamedFile& file : exported.files) {
    if (file.name == kTokenizerModel) continue;
    Json json = Json::parse(file.content);
    json.erase("kvloom");
    folder.write(file.name, json.dump());
  }
  return load_huggingface(folder.path());
}

void expect_equal(const Tokenizer& own, const Tokenizer& read, const std::vector<std::string>& texts) {
  EXPECT_EQ(read.vocab(), own.vocab());
  EXPECT_EQ(read.separator(), own.separator());
  EXPECT_TRUE(read.start_ids().empty());
  EXPECT_TRUE(read.end_ids().empty());
  for (const std::string& text : texts) {
    const std::vector<std::int32_t> ids = own.encode(text);
    EXPECT_EQ(read.encode(text), ids) << text;
    EXPECT_EQ(read.decode(ids), own.decode(ids)) << text;
  }
}

std::string with_dummy_prefix(const std::string& model) { return model + std::string("\x1a\x02\x18\x01", 4); }

TEST(TokenizerExport, ATrainedSentencePieceModelGivesTheSameIds) {
  test::Random random;
  const std::vector<std::string> texts = texts_of(random, 300);
  for (const std::int64_t vocab : {300, 420}) {
    const auto own = make_tokenizer("sentencepiece", train_sentencepiece(texts, {.vocab = vocab}), "test");
    const ExportedTokenizer exported = export_tokenizer({"sentencepiece", own->serialized()}, "test");
    EXPECT_EQ(exported.missing, "");
    ASSERT_EQ(exported.files.size(), 3);
    expect_equal(*own, *as_others_read(exported), texts_of(random, 200));
  }
}

TEST(TokenizerExport, AModelThatPutsASpaceBeforeTextsGivesTheSameIds) {
  test::Random random;
  const std::string model = with_dummy_prefix(train_sentencepiece(texts_of(random, 300), {.vocab = 400}));
  const auto own = make_tokenizer("sentencepiece", model, "test");
  const auto read = as_others_read(export_tokenizer({"sentencepiece", model}, "test"));
  for (const std::string text : {"layer reads above", " layer", "Upward12  é"}) {
    EXPECT_EQ(read->encode(text), own->encode(text)) << text;
  }
}

TEST(TokenizerExport, BytesGiveTheSameIds) {
  test::Random random;
  const auto own = make_byte_tokenizer();
  expect_equal(*own, *as_others_read(export_tokenizer({"bytes", {}}, "test")), texts_of(random, 200));
}

TEST(TokenizerExport, KvloomFindsTheOriginalAgain) {
  test::Random random;
  const std::string model = train_sentencepiece(texts_of(random, 300), {.vocab = 300});
  for (const CarriedTokenizer& own : {CarriedTokenizer{"sentencepiece", model}, CarriedTokenizer{"bytes", {}}}) {
    const std::vector<NamedFile> files = export_tokenizer(own, "test").files;
    const auto found = tokenizer_among(files);
    ASSERT_TRUE(found.has_value());
    EXPECT_EQ(found->kind, own.kind);
    EXPECT_EQ(found->content, own.content);
    const TemporaryFolder folder;
    for (const NamedFile& file : files) folder.write(file.name, file.content);
    EXPECT_EQ(load_huggingface(folder.path())->kind(), own.kind);
  }
}

TEST(TokenizerExport, OthersLeaveAsTheyCameAndWhatNoJsonSaysIsSaid) {
  EXPECT_TRUE(export_tokenizer({"huggingface", "x"}, "test").files.empty());
  test::Random random;
  const std::string model = train_sentencepiece(texts_of(random, 300), {.vocab = 300});
  // remove_extra_whitespaces
  const ExportedTokenizer trimmed =
      export_tokenizer({"sentencepiece", model + std::string("\x1a\x02\x20\x01", 4)}, "test");
  EXPECT_THAT(trimmed.missing, HasSubstr("removes spaces"));
  ASSERT_EQ(trimmed.files.size(), 2);
  EXPECT_EQ(trimmed.files[0].name, kTokenizerModel);
  const Json config = Json::parse(trimmed.files[1].content);
  EXPECT_EQ(config["add_bos_token"], false);
  EXPECT_EQ(config["eos_token"], "</s>");
}

}  // namespace
}  // namespace kvloom
