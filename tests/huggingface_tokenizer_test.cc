// Hugging Face's tokenizers give the ids and the text that the reference gave (tests/fixtures/tokenizers/make.py).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <thread>

#include "kernels/error.h"
#include "tests/support/random.h"
#include "tests/support/small_tokenizer.h"
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
                                           "accents", "deepseek", "starcoder", "bloom", "behaviours"),
                         [](const auto& instance) { return std::string(instance.param); });

TEST_P(Reference, ThreadsThatShareATokenizerGetTheSameIds) {
  std::vector<std::thread> threads;
  std::array<int, 3> wrong{};
  for (int& count : wrong) {
    threads.emplace_back([&] {
      for (std::size_t i = 0; i < 500; ++i) count += tokenizer_->encode(corpus()[i]) != expected_.lines[i].ids;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(wrong, ::testing::Each(0));
}

TEST_P(Reference, SerialisedIsTheSameTokenizerAndKeepsItsFilesByteForByte) {
  const auto again = make_tokenizer(tokenizer_->kind(), tokenizer_->serialized(), "again");
  EXPECT_EQ(again->vocab(), tokenizer_->vocab());
  EXPECT_EQ(again->separator(), tokenizer_->separator());
  EXPECT_EQ(again->encode(corpus()[100]), tokenizer_->encode(corpus()[100]));
  ASSERT_EQ(again->files().size(), 2u);
  for (const NamedFile& file : again->files()) {
    EXPECT_EQ(file.content, read_bytes(test::tokenizer_fixtures() / GetParam() / file.name));
  }
}

// Where nothing is put before a text that goes on, pieces that end with lines decode to the whole.
TEST(HuggingFace, ATextInPiecesDecodesToTheWhole) {
  test::Random random;
  std::string text;
  for (int i = 0; i < 200; ++i) text += "line " + std::to_string(random.integer(0, 99)) + " of  a text\n";
  for (const char* name : {"gpt2", "llama2", "llama3", "qwen", "mistral", "gemma", "deepseek"}) {
    const auto tokenizer = load_huggingface(test::tokenizer_fixtures() / name);
    std::vector<std::int32_t> ids;
    for (std::size_t at = 0; at < text.size();) {
      const auto wanted = static_cast<std::size_t>(random.integer(1, 500));
      const std::size_t end = std::min(text.find('\n', at + wanted), text.size() - 1) + 1;
      tokenizer->encode(text.substr(at, end - at), at == 0 ? Place::kStart : Place::kMiddle, ids);
      at = end;
    }
    EXPECT_EQ(tokenizer->decode(ids), text) << name;
  }
}

// All merges by rank, then by place, over and over.
std::vector<std::string> merged(std::vector<std::string> symbols,
                                const std::map<std::pair<std::string, std::string>, int>& ranks) {
  while (true) {
    std::pair<int, std::size_t> best{1 << 30, 0};
    for (std::size_t i = 0; i + 1 < symbols.size(); ++i) {
      const auto rank = ranks.find({symbols[i], symbols[i + 1]});
      if (rank != ranks.end()) best = std::min(best, {rank->second, i});
    }
    if (best.first == 1 << 30) return symbols;
    symbols[best.second] += symbols[best.second + 1];
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best.second) + 1);
  }
}

TEST(HuggingFace, MergesInTheOrderOfTheirRanksInWordsOfAnyLength) {
  test::Random random;
  for (int round = 0; round < 30; ++round) {
    nlohmann::json json = test::character_tokenizer();
    const bool has_bytes = random.flip();
    std::vector<std::string> tokens = {"a", "b", "c", "d", "e", "▁"};
    nlohmann::json vocab = {{"<unk>", 0}, {"</s>", 1}};
    for (const std::string& token : tokens) vocab[token] = vocab.size();
    std::map<std::pair<std::string, std::string>, int> ranks;
    nlohmann::json merges = nlohmann::json::array();
    for (int i = 0; i < 40; ++i) {
      const std::string left = tokens[static_cast<std::size_t>(random.integer(0, static_cast<int>(tokens.size()) - 1))];
      const std::string right =
          tokens[static_cast<std::size_t>(random.integer(0, static_cast<int>(tokens.size()) - 1))];
      if (left.size() + right.size() > 12 ||
          !ranks.emplace(std::pair(left, right), static_cast<int>(ranks.size())).second)
        continue;
      merges.push_back({left, right});
      if (vocab.contains(left + right)) continue;
      vocab[left + right] = vocab.size();
      tokens.push_back(left + right);
    }
    if (has_bytes) {
      for (int byte = 0; byte < 256; ++byte) vocab[fmt::format("<0x{:02X}>", byte)] = vocab.size();
      json["model"]["byte_fallback"] = true;
    }
    json["added_tokens"] = {test::added_token(1, "</s>")};
    json["model"]["vocab"] = vocab;
    json["model"]["merges"] = merges;
    const auto tokenizer = test::tokenizer_from(json);
    for (int word = 0; word < 40; ++word) {
      std::vector<std::string> symbols;
      std::string text;
      for (std::int64_t length = random.integer(1, word % 4 == 0 ? 400 : 40); length > 0; --length) {
        symbols.push_back(tokens[static_cast<std::size_t>(random.integer(0, 5))]);
        text += symbols.back();
      }
      std::vector<std::int32_t> expected;
      for (const std::string& symbol : merged(symbols, ranks)) expected.push_back(vocab[symbol]);
      ASSERT_EQ(tokenizer->encode(text), expected) << json.dump() << "\n" << text;
    }
  }
}

// Characters that the vocabulary lacks are their bytes, which merge as any token does, with one another and with
// others.
TEST(HuggingFace, MergesGoOverTheBytesOfCharactersThatTheVocabularyLacks) {
  test::Random random;
  const std::vector<std::pair<std::string, std::vector<std::string>>> units = {{"a", {"a"}},
                                                                               {"b", {"b"}},
                                                                               {"ü", {"<0xC3>", "<0xBC>"}},
                                                                               {"ä", {"<0xC3>", "<0xA4>"}},
                                                                               {"€", {"<0xE2>", "<0x82>", "<0xAC>"}}};
  for (int round = 0; round < 30; ++round) {
    nlohmann::json json = test::character_tokenizer();
    nlohmann::json vocab = {{"<unk>", 0}, {"</s>", 1}, {"a", 2}, {"b", 3}};
    for (int byte = 0; byte < 256; ++byte) vocab[fmt::format("<0x{:02X}>", byte)] = vocab.size();
    std::vector<std::string> tokens = {"a", "b", "<0xC3>", "<0xBC>", "<0xA4>", "<0xE2>", "<0x82>", "<0xAC>"};
    std::map<std::pair<std::string, std::string>, int> ranks;
    nlohmann::json merges = nlohmann::json::array();
    for (int i = 0; i < 25; ++i) {
      const auto any = [&] { return tokens[static_cast<std::size_t>(random.integer(0, std::ssize(tokens) - 1))]; };
      const std::string left = any();
      const std::string right = any();
      if (left.size() + right.size() > 30) continue;
      if (!ranks.emplace(std::pair(left, right), static_cast<int>(ranks.size())).second) continue;
      merges.push_back({left, right});
      if (vocab.contains(left + right)) continue;
      vocab[left + right] = vocab.size();
      tokens.push_back(left + right);
    }
    json["model"]["byte_fallback"] = true;
    json["model"]["vocab"] = vocab;
    json["model"]["merges"] = merges;
    json["added_tokens"] = {test::added_token(1, "</s>")};
    const auto tokenizer = test::tokenizer_from(json);
    for (int word = 0; word < 20; ++word) {
      std::string text;
      std::vector<std::string> symbols;
      for (std::int64_t length = random.integer(1, 60); length > 0; --length) {
        const auto& [character, bytes] = units[static_cast<std::size_t>(random.integer(0, std::ssize(units) - 1))];
        text += character;
        symbols.insert(symbols.end(), bytes.begin(), bytes.end());
      }
      std::vector<std::int32_t> expected;
      for (const std::string& symbol : merged(symbols, ranks)) expected.push_back(vocab[symbol]);
      ASSERT_EQ(tokenizer->encode(text), expected) << json.dump() << "\n" << text;
    }
  }
}

TEST(HuggingFace, UnknownCharactersFuseOrDoNotOrLeaveNothing) {
  nlohmann::json json = test::character_tokenizer();
  EXPECT_EQ(test::tokenizer_from(json)->encode("xxa"), (std::vector<std::int32_t>{0, 2}));
  json["model"]["fuse_unk"] = false;
  EXPECT_EQ(test::tokenizer_from(json)->encode("xxa"), (std::vector<std::int32_t>{0, 0, 2}));
  json["model"]["unk_token"] = nullptr;
  EXPECT_EQ(test::tokenizer_from(json)->encode("axb"), (std::vector<std::int32_t>{6})) << "a and b meet";
}

TEST(HuggingFace, AStreamNeverCutsACharacterAndShowsBrokenBytesAsTheWholeTextDoes) {
  const auto tokenizer = load_huggingface(test::tokenizer_fixtures() / "gpt2");
  test::Random random;
  for (int i = 0; i < 300; ++i) {
    const auto ids = random.tokens(20, tokenizer->vocab());
    StreamDecoder stream(*tokenizer);
    std::string streamed;
    for (const std::int32_t id : ids) {
      streamed += stream.push(id);
      ASSERT_TRUE(is_well_formed(streamed));
    }
    ASSERT_EQ(streamed + stream.finish(), tokenizer->decode(ids));
  }
}

TEST(HuggingFace, AStreamThatGoesOnWithATextKeepsTheSpaceOfItsFirstWord) {
  const auto tokenizer = load_huggingface(test::tokenizer_fixtures() / "llama2");
  const std::vector<std::int32_t> ids = tokenizer->encode("there");
  std::string start;
  std::string middle;
  StreamDecoder at_start(*tokenizer);
  StreamDecoder in_middle(*tokenizer, Place::kMiddle);
  for (const std::int32_t id : ids) {
    start += at_start.push(id);
    middle += in_middle.push(id);
  }
  EXPECT_EQ(start, "there");
  EXPECT_EQ(middle, " there");
}

TEST(HuggingFace, TheEndOfATextIsTheConfigurationsElseAWellKnownToken) {
  nlohmann::json json = test::character_tokenizer();
  EXPECT_EQ(test::tokenizer_from(json)->separator(), 1);
  EXPECT_EQ(test::tokenizer_from(json, R"({"eos_token": "<x>"})")->separator(), 11);
  EXPECT_EQ(test::tokenizer_from(json, R"({"eos_token": {"content": "abc"}})")->separator(), 7);
  EXPECT_EQ(test::tokenizer_from(json, R"({"eos_token": null})")->separator(), 1);
}

std::string refusal(const nlohmann::json& json, const std::string& config = "") {
  try {
    test::tokenizer_from(json, config);
  } catch (const InputError& error) {
    return error.what();
  }
  return "not refused";
}

struct Lie {
  std::string place;  // JSON pointer
  nlohmann::json value;
  std::string message;
};

TEST(HuggingFace, WhatIsWrongOrNotSupportedIsRefusedByName) {
  const nlohmann::json merge = {"a", "zz"};
  const nlohmann::json regex = {{"Regex", "a[b[^c]]"}};
  const std::vector<Lie> lies = {
      {"/version", "2.0", "tokenizer.json.version: right is '1.0'"},
      {"/model/type", "Unigram", "tokenizer.json.model: type 'Unigram'"},
      {"/model/dropout", 0.1, "model.dropout: 0.1"},
      {"/model/continuing_subword_prefix", "##", "continuing_subword_prefix: '##'"},
      {"/model/unk_token", "zz", "model.unk_token: 'zz' is not in the vocabulary"},
      {"/model/vocab", nlohmann::json::object(), "model.vocab: is empty"},
      {"/model/vocab/a", -1, "model.vocab['a']: -1"},
      {"/model/vocab/a", 1 << 30, "model.vocab['a']: 1073741824; right is a whole number of 0 to"},
      {"/model/vocab/a", 3, "both have id 3"},
      {"/model/vocab/a", "2", "model.vocab['a']: \"2\""},
      {"/model/merges/1", merge, "model.merges[1]: 'zz' is not in the vocabulary"},
      {"/model/merges/1", "a b c", "model.merges[1]: 'a b c'"},
      {"/model/merges/1", "b a", "model.merges[1]: 'ba' is not in the vocabulary"},
      {"/model/merges", 3, "model.merges: is no array"},
      {"/added_tokens/2/id", 500, "added_tokens[2]: '<x>' has id 500; the next free one is 11"},
      {"/added_tokens/1/id", 2, "added_tokens[1]: '</s>' has id 2; the vocabulary gives it 1"},
      {"/added_tokens/1/content", "", "added_tokens[1].content: is empty"},
      {"/added_tokens/1/content", "<unk>", "added_tokens[1]: '<unk>' comes twice"},
      {"/added_tokens/1/special", 1, "added_tokens[1].special: is neither true nor false"},
      {"/normalizer/type", "BertNormalizer", "normalizer: normalizer 'BertNormalizer'"},
      {"/normalizer/pattern", regex,
       "normalizer.pattern.Regex: regular expression 'a[b[^c]]': such a set within a set at 3"},
      {"/pre_tokenizer", {{"type", "UnicodeScripts"}}, "pre_tokenizer: pre-tokenizer 'UnicodeScripts'"},
      {"/post_processor/special_tokens/<~1s>/ids/0", 2, "special_tokens.</s>.ids[0]: 2; '</s>' is 1"},
      {"/post_processor/single/1/SpecialToken/id", "<s>", "'<s>' is not among special_tokens"},
      {"/post_processor/type", "Other", "post-processor 'Other'"},
      {"/decoder/type", "CTC", "decoder: decoder 'CTC'"},
      {"/decoder/replacement", "ab", "decoder.replacement: 'ab'; right is one character"},
  };
  for (const Lie& lie : lies) {
    nlohmann::json json = test::character_tokenizer();
    json[nlohmann::json::json_pointer(lie.place)] = lie.value;
    EXPECT_THAT(refusal(json), HasSubstr(lie.message)) << lie.place;
  }
  const nlohmann::json right = test::character_tokenizer();
  EXPECT_EQ(refusal(right), "not refused");
  EXPECT_THAT(refusal(right, "{"), HasSubstr("tokenizer_config.json: is no JSON"));
  EXPECT_EQ(refusal(right, R"({"eos_token": "<|x|>"})"), "not refused") << "it is added, as in transformers";
  nlohmann::json endless = right;
  endless["added_tokens"] = nlohmann::json::array();
  EXPECT_THAT(refusal(endless), HasSubstr("no end of a text"));
}

TEST(HuggingFace, ValuesNestedWithoutEndAreRefusedLikeOthers) {
  std::string text = test::character_tokenizer().dump();
  const std::string id = "\"id\":11";
  text.replace(text.find(id), id.size(), "\"id\":" + std::string(200'000, '[') + std::string(200'000, ']'));
  try {
    make_tokenizer("huggingface", test::packed_tokenizer(text), "x");
    FAIL();
  } catch (const InputError& error) {
    EXPECT_THAT(error.what(), HasSubstr("added_tokens[2].id: an array; right is a whole number"));
  }
}

TEST(HuggingFace, FilesThatAreNoTokenizersAreRefusedByName) {
  const TemporaryFolder folder;
  folder.write("bad.json", "{\"model\": ");
  const auto message = [](const std::filesystem::path& path) {
    try {
      load_huggingface(path);
    } catch (const InputError& error) {
      return std::string(error.what());
    }
    return std::string("not refused");
  };
  EXPECT_THAT(message(folder / "bad.json"), HasSubstr("bad.json': tokenizer.json: is no JSON"));
  EXPECT_THAT(message(folder / "none.json"), HasSubstr("none.json"));
  EXPECT_THAT(message(folder.path()), HasSubstr("tokenizer.json"));
  EXPECT_THROW(make_tokenizer("huggingface", "no message", "x"), InputError);
  const auto tokenizer = test::tokenizer_from(test::character_tokenizer());
  EXPECT_THROW(tokenizer->decode(std::vector<std::int32_t>{12}), InputError);
  EXPECT_THROW(tokenizer->bytes_of(-1), InputError);
}

TEST(HuggingFace, StepsThatMultiplyATextAreStopped) {
  nlohmann::json json = test::character_tokenizer();
  nlohmann::json steps = nlohmann::json::array();
  for (int i = 0; i < 60; ++i)
    steps.push_back({{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", "aa"}});
  json["normalizer"] = {{"type", "Sequence"}, {"normalizers", steps}};
  EXPECT_THROW(test::tokenizer_from(json)->encode("aaa"), InputError);
}

}  // namespace
}  // namespace kvloom
