// What lies beside a tokenizer.json counts as in transformers 4.57, which gave the ids here.
#include "infer/huggingface/settings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "infer/tokenizer.h"
#include "kernels/error.h"
#include "tests/support/thrown.h"
#include "tests/support/tokenizer_fixture.h"

namespace kvloom {
namespace {

using ::testing::HasSubstr;
using Ids = std::vector<std::int32_t>;
using Json = nlohmann::json;

class TokenizerSettings : public ::testing::Test {
 protected:
  // The fixture's tokenizer.json in the folder, after `change`.
  void take(
      const std::string& fixture, const std::function<void(Json&)>& change = [](Json&) {}) {
    Json json = Json::parse(read_bytes(test::tokenizer_fixtures() / fixture / "tokenizer.json"));
    change(json);
    folder_.write("tokenizer.json", json.dump());
  }
  std::unique_ptr<Tokenizer> load(const Json& config) {
    folder_.write("tokenizer_config.json", config.dump());
    return load_huggingface(folder_.path());
  }
  // With what stands around the text, but without the separator.
  static Ids ids_of(const Tokenizer& tokenizer, const std::string& text) {
    Ids ids = tokenizer.start_ids();
    tokenizer.encode(text, ids);
    const Ids end = tokenizer.end_ids();
    ids.insert(ids.end(), end.begin(), end.end());
    return ids;
  }

  const Json gpt2_ = {{"tokenizer_class", "GPT2Tokenizer"}, {"eos_token", "<|endoftext|>"}};
  const std::string text_ = "a <one> b<two>c <three>";
  TemporaryFolder folder_;
};

TEST_F(TokenizerSettings, TokensOfTheConfigurationAreAddedBehindTheOthersById) {
  take("gpt2");
  EXPECT_EQ(ids_of(*load(gpt2_), text_), (Ids{64, 397, 355, 68, 29, 306, 27, 83, 498, 29, 66, 397, 83, 71, 558, 29}));
  Json config = gpt2_;
  config["added_tokens_decoder"] = {{"1402", {{"content", "<two>"}, {"special", true}}},
                                    {"1401", {{"content", "<one>"}, {"lstrip", true}, {"normalized", false}}}};
  const auto tokenizer = load(config);
  EXPECT_EQ(ids_of(*tokenizer, text_), (Ids{64, 1401, 306, 1402, 66, 397, 83, 71, 558, 29}));
  EXPECT_EQ(tokenizer->vocab(), 1403);
  EXPECT_EQ(tokenizer->decode(Ids{64, 1401, 1402}), "a<one>") << "special ones have no text";
}

TEST_F(TokenizerSettings, AddedTokensJsonAndSpecialTokensCountWhereThereIsNoDecoder) {
  take("gpt2");
  folder_.write("added_tokens.json", R"({"<two>": 1402, "<one>": 1401})");
  EXPECT_EQ(ids_of(*load(gpt2_), text_), (Ids{64, 220, 1401, 306, 1402, 66, 397, 83, 71, 558, 29}));
  std::filesystem::remove(folder_ / "added_tokens.json");
  Json config = gpt2_;
  config["pad_token"] = "<two>";
  config["additional_special_tokens"] = {"<three>", {{"content", "<one>"}, {"rstrip", true}, {"__type", "AddedToken"}}};
  EXPECT_EQ(ids_of(*load(config), text_), (Ids{64, 220, 1403, 65, 1401, 66, 220, 1402}));
  folder_.write("special_tokens_map.json", R"({"eos_token": "<three>", "additional_special_tokens": ["<one>"]})");
  const auto mapped = load(gpt2_);
  EXPECT_EQ(ids_of(*mapped, text_), (Ids{64, 220, 1402, 306, 27, 83, 498, 29, 66, 220, 1401}));
  EXPECT_EQ(mapped->separator(), 1401);
  folder_.write("added_tokens.json", R"({"<two>": 1402})");
  config = gpt2_;
  config["added_tokens_decoder"] = {{"1401", {{"content", "<one>"}}}};
  EXPECT_EQ(ids_of(*load(config), text_), (Ids{64, 220, 1401, 306, 27, 83, 498, 29, 66, 397, 83, 71, 558, 29}))
      << "with a decoder the older files do not count";
}

TEST_F(TokenizerSettings, TheyGoWithTheTokenizer) {
  take("gpt2");
  folder_.write("added_tokens.json", R"({"<one>": 1401})");
  const auto tokenizer = load(gpt2_);
  const auto again = make_tokenizer(tokenizer->kind(), tokenizer->serialized(), "again");
  EXPECT_EQ(again->vocab(), tokenizer->vocab());
  EXPECT_EQ(again->encode(text_), tokenizer->encode(text_));
}

TEST_F(TokenizerSettings, ASpaceGoesBeforeTextsWhereAddPrefixSpaceSaysSo) {
  const Ids without = {39, 68, 310, 78, 775};
  const Ids with = {1193, 310, 78, 775};
  for (const bool file_says : {false, true}) {
    take("gpt2", [&](Json& json) { json["pre_tokenizer"]["add_prefix_space"] = file_says; });
    EXPECT_EQ(ids_of(*load(gpt2_), "Hello world"), without) << "as both versions";
    for (const bool says : {false, true}) {
      Json config = gpt2_;
      config["add_prefix_space"] = says;
      EXPECT_EQ(ids_of(*load(config), "Hello world"), says ? with : without);
    }
    std::filesystem::remove(folder_ / "tokenizer_config.json");
    EXPECT_EQ(ids_of(*load_huggingface(folder_.path()), "Hello world"), file_says ? with : without);
  }
}

TEST_F(TokenizerSettings, FlagsSayWhatStandsAroundATextForTheClassesThatReadThem) {
  const Ids text = {562, 1287, 328, 873};
  const auto around = [&](bool start, bool end) {
    Ids ids = text;
    if (start) ids.insert(ids.begin(), 1);
    if (end) ids.push_back(2);
    return ids;
  };
  for (const bool has_template : {true, false}) {
    take("llama2", [&](Json& json) {
      if (!has_template) json["post_processor"] = nullptr;
    });
    for (const std::string family : {"LlamaTokenizer", "LlamaTokenizerFast", "GemmaTokenizer", "CohereTokenizerFast"}) {
      const Json base = {{"tokenizer_class", family}, {"bos_token", "<s>"}, {"eos_token", "</s>"}};
      const auto with = [&](Json config) {
        config.update(base);
        return ids_of(*load(config), "Hello world");
      };
      EXPECT_EQ(with({}), around(has_template, false)) << family << ": what tokenizer.json says";
      EXPECT_EQ(with({{"add_bos_token", true}}), around(true, false)) << family;
      EXPECT_EQ(with({{"add_bos_token", false}}), around(false, false)) << family;
      EXPECT_EQ(with({{"add_eos_token", true}}), around(true, true)) << family;
      EXPECT_EQ(with({{"add_bos_token", false}, {"add_eos_token", true}}), around(false, true)) << family;
      EXPECT_EQ(with({{"add_bos_token", nullptr}}), around(has_template, false)) << family;
    }
    Json config = {{"tokenizer_class", "GPTNeoXTokenizer"}, {"bos_token", "<s>"}, {"eos_token", "</s>"}};
    config["add_eos_token"] = true;
    EXPECT_EQ(ids_of(*load(config), "Hello world"), around(false, true)) << "its start is off unless told";
    config["tokenizer_class"] = "PreTrainedTokenizerFast";
    const auto other = load(config);
    EXPECT_EQ(ids_of(*other, "Hello world"), around(has_template, false)) << "it does not read them";
    if (!has_template) {
      EXPECT_THAT(other->unheeded(), HasSubstr("add_bos_token, add_eos_token"));
    }
  }
}

TEST_F(TokenizerSettings, OfAnotherTypeTheyAreRefusedByName) {
  take("gpt2");
  const auto refusal = [&](const std::string& name, const Json& value) {
    Json config = gpt2_;
    config[name] = value;
    return test::message_of([&] { load(config); });
  };
  EXPECT_THAT(refusal("add_bos_token", "yes"), HasSubstr("tokenizer_config.json.add_bos_token"));
  EXPECT_THAT(refusal("add_prefix_space", 1), HasSubstr("add_prefix_space"));
  EXPECT_THAT(refusal("added_tokens_decoder", Json::array()), HasSubstr("added_tokens_decoder"));
  EXPECT_THAT(refusal("added_tokens_decoder", {{"x", {{"content", "a"}}}}), HasSubstr("'x' is no id"));
  EXPECT_THAT(refusal("added_tokens_decoder", {{"1401", {{"special", true}}}}), HasSubstr("content"));
  EXPECT_THAT(refusal("additional_special_tokens", "<a>"), HasSubstr("additional_special_tokens"));
  EXPECT_THAT(refusal("pad_token", 3), HasSubstr("pad_token"));
  folder_.write("added_tokens.json", R"({"<one>": "1"})");
  EXPECT_THAT(test::message_of([&] { load(gpt2_); }), HasSubstr("added_tokens.json.<one>"));
  folder_.write("added_tokens.json", "[1]");
  EXPECT_THAT(test::message_of([&] { load(gpt2_); }), HasSubstr("added_tokens.json: is no JSON object"));
}

}  // namespace
}  // namespace kvloom
