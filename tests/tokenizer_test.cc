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

std::unique_ptr<Tokenizer> in_folder(const std::string& config) {
  const TemporaryFolder folder;
  folder.write("tokenizer.model", sample_model());
  if (!config.empty()) folder.write("tokenizer_config.json", config);
  return load_huggingface(folder.path());
}

// Ids that stand for no text, though their pieces have names.
TEST(Tokenizer, TheUnknownIdAndTheEndsOfSentencesHaveNoText) {
  for (const auto& tokenizer : {make_tokenizer("sentencepiece", sample_model(), "test"), in_folder("{}")}) {
    const std::vector<std::int32_t> word = tokenizer->encode("template");
    for (const std::int32_t id : {0, 1, 2}) {  // <unk>, <s>, </s>
      EXPECT_EQ(tokenizer->bytes_of(id), "") << id;
      EXPECT_EQ(tokenizer->bytes_of(id, Place::kStart), "") << id;
      std::vector<std::int32_t> ids = word;
      ids.push_back(id);
      ids.insert(ids.end(), word.begin(), word.end());
      std::vector<std::int32_t> twice = word;
      twice.insert(twice.end(), word.begin(), word.end());
      EXPECT_EQ(tokenizer->decode(ids), tokenizer->decode(twice)) << id;
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

// As transformers' LlamaTokenizer: the start unless it is told otherwise, the end only if it is told to.
TEST(ConfiguredSentencePiece, StandsBetweenStartAndEndAsItsConfigurationSays) {
  using Ids = std::vector<std::int32_t>;
  const std::string llama = R"("tokenizer_class": "LlamaTokenizer")";
  EXPECT_EQ(in_folder("")->start_ids(), Ids{});
  EXPECT_EQ(in_folder("")->kind(), "sentencepiece");
  EXPECT_EQ(in_folder("{}")->start_ids(), Ids{});
  EXPECT_EQ(in_folder("{" + llama + "}")->start_ids(), Ids{1});
  EXPECT_EQ(in_folder("{" + llama + "}")->end_ids(), Ids{});
  EXPECT_EQ(in_folder("{" + llama + R"(, "add_bos_token": false, "add_eos_token": true})")->start_ids(), Ids{});
  EXPECT_EQ(in_folder("{" + llama + R"(, "add_bos_token": false, "add_eos_token": true})")->end_ids(), Ids{2});
  EXPECT_EQ(in_folder(R"({"add_bos_token": true, "bos_token": {"content": "</s>"}})")->start_ids(), Ids{2});
  EXPECT_EQ(in_folder(R"({"eos_token": "<s>"})")->separator(), 1);
  EXPECT_EQ(in_folder("{}")->separator(), 2);
  EXPECT_THROW(in_folder(R"({"add_bos_token": 1})"), InputError);
  EXPECT_THROW(in_folder(R"({"eos_token": 2})"), InputError);
  EXPECT_THROW(in_folder("{"), InputError);
}

TEST(ConfiguredSentencePiece, SerialisedIsTheSameTokenizerWhoseIdsAreThoseOfItsModel) {
  test::Random random;
  const auto tokenizer = in_folder(R"({"tokenizer_class": "LlamaTokenizer", "add_eos_token": true})");
  const auto again = make_tokenizer(tokenizer->kind(), tokenizer->serialized(), "test");
  const auto plain = make_tokenizer("sentencepiece", sample_model(), "test");
  EXPECT_EQ(again->serialized(), tokenizer->serialized());
  EXPECT_EQ(again->start_ids(), tokenizer->start_ids());
  EXPECT_EQ(again->end_ids(), tokenizer->end_ids());
  ASSERT_EQ(again->files().size(), 2u);
  EXPECT_EQ(again->files()[0].name, "tokenizer.model");
  EXPECT_EQ(again->files()[0].content, sample_model());
  EXPECT_TRUE(same_tokenizer({plain->kind(), plain->serialized()}, {again->kind(), again->serialized()}));
  for (const std::string& text : nasty_texts(random)) EXPECT_EQ(again->encode(text), plain->encode(text));
}

TEST(ConfiguredSentencePiece, SaysWhatOfItsConfigurationItDoesNotHeed) {
  EXPECT_EQ(in_folder(R"({"tokenizer_class": "LlamaTokenizer", "added_tokens_decoder": {"1": {"content": "<s>"}},
                          "sp_model_kwargs": {}, "legacy": false, "model_max_length": 4096})")
                ->unheeded(),
            "");
  EXPECT_EQ(in_folder("")->unheeded(), "");
  const std::string unheeded =
      in_folder(R"({"add_prefix_space": false, "sp_model_kwargs": {"alpha": 0.1}})")->unheeded();
  for (const char* field : {"add_prefix_space", "sp_model_kwargs"}) {
    EXPECT_NE(unheeded.find(field), std::string::npos) << field << " in " << unheeded;
  }
}

// As in transformers, whose ids of such texts kvloom gives for Llama 2's model, with "legacy" and without.
TEST(ConfiguredSentencePiece, TheTextsOfSpecialAndAddedTokensAreThoseTokens) {
  const auto plain = make_tokenizer("sentencepiece", sample_model(), "test");
  const auto tokenizer = in_folder(R"({"bos_token": "<begin>", "eos_token": "</s>",
                                       "added_tokens_decoder": {"2": {"content": "</s>", "special": true},
                                                                "900000": {"content": "<tool>"}}})");
  const auto first = static_cast<std::int32_t>(plain->vocab());
  EXPECT_EQ(tokenizer->vocab(), first + 2);
  EXPECT_EQ(tokenizer->separator(), 2);
  std::vector<std::int32_t> wanted = plain->encode("one");
  wanted.push_back(2);
  plain->encode(" two", wanted);
  wanted.insert(wanted.end(), {first, first + 1});
  EXPECT_EQ(tokenizer->encode("one</s> two<tool><begin>"), wanted);
  EXPECT_EQ(tokenizer->bytes_of(first), "<tool>");
  EXPECT_EQ(tokenizer->bytes_of(first + 1), "") << "a special token has no text";
  EXPECT_TRUE(tokenizer->start_ids().empty());
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
