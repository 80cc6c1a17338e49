// generation_config.json: it goes where its model goes, ends its texts and says how it is sampled, unless options do.
#include "infer/generation_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "core/convert/huggingface_origin.h"
#include "core/decoder.h"
#include "infer/tokenizer.h"
#include "kernels/error.h"
#include "tests/support/huggingface_folder.h"
#include "tests/support/tiny_run.h"
#include "tests/support/tokenizer_fixture.h"
#include "train/loaded_model.h"

namespace kvloom {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Words = std::vector<std::string>;
using Ids = std::vector<std::int32_t>;

proto::HuggingFaceOrigin origin_of(const std::string& config, const std::string& generation) {
  proto::HuggingFaceOrigin origin;
  origin.set_config(config);
  if (generation.empty()) return origin;
  proto::CarriedFile& file = *origin.add_files();
  file.set_name("generation_config.json");
  file.set_content(generation);
  return origin;
}

GenerationConfig read(const std::string& config, const std::string& generation) {
  return generation_config_of(origin_of(config, generation), 100, "model");
}

TEST(GenerationConfig, TakesOneEndOrManyAndThoseOfConfigJsonWhereItHasNone) {
  EXPECT_THAT(read("", R"({"eos_token_id": 7})").ends, ElementsAre(7));
  EXPECT_THAT(read("", R"({"eos_token_id": [7, 9, 8], "bos_token_id": 1})").ends, ElementsAre(7, 9, 8));
  const std::string config = R"({"eos_token_id": [3, 4], "bos_token_id": 5})";
  EXPECT_THAT(read(config, R"({"eos_token_id": 7})").ends, ElementsAre(7));
  EXPECT_EQ(read(config, R"({"eos_token_id": 7})").start, 5);
  EXPECT_THAT(read(config, R"({"eos_token_id": null, "bos_token_id": 2})").ends, ElementsAre(3, 4));
  EXPECT_EQ(read(config, R"({"bos_token_id": 2})").start, 2);
  EXPECT_THAT(read(config, "").ends, ElementsAre(3, 4));
  EXPECT_THAT(read("", R"({"eos_token_id": [100, 99, -1, 18446744073709551615]})").ends, ElementsAre(99))
      << "others are no tokens";
  EXPECT_TRUE(read("", "").ends.empty());
}

TEST(GenerationConfig, OfAnotherTypeIsRefusedWithFileAndField) {
  for (const auto& [text, word] :
       std::vector<std::pair<std::string, std::string>>{{R"({"eos_token_id": "</s>"})", "eos_token_id"},
                                                        {R"({"eos_token_id": [1, 2.5]})", "eos_token_id"},
                                                        {R"({"top_k": -1})", "top_k"},
                                                        {R"({"temperature": "hot"})", "temperature"},
                                                        {"[]", "no JSON object"},
                                                        {"{", "no JSON"}}) {
    try {
      read("", text);
      ADD_FAILURE() << text;
    } catch (const InputError& error) {
      EXPECT_THAT(error.what(), HasSubstr("model: generation_config.json"));
      EXPECT_THAT(error.what(), HasSubstr(word));
    }
  }
}

TEST(GenerationConfig, IdsGoWithTheTokenizerThatTheyAreOf) {
  proto::HuggingFaceOrigin origin = origin_of(R"({"vocab_size": 9, "eos_token_id": 3, "pad_token_id": 0})",
                                              R"({"eos_token_id": [7, 9], "bos_token_id": 1, "top_p": 0.5})");
  for (const char* name : {"tokenizer.json", "LICENSE", "vocab.json"}) origin.add_files()->set_name(name);
  forget_tokenizer(origin);
  const GenerationConfig left = generation_config_of(origin, 100, "model");
  EXPECT_TRUE(left.ends.empty());
  EXPECT_FALSE(left.start.has_value());
  EXPECT_EQ(left.top_p, 0.5f) << "that is not the tokenizer's";
  EXPECT_EQ(nlohmann::json::parse(origin.config()), (nlohmann::json{{"vocab_size", 9}}));
  ASSERT_EQ(origin.files_size(), 2);
  EXPECT_EQ(origin.files(1).name(), "LICENSE");
}

// A folder as from Hugging Face, "hf", with the reference's llama2 tokenizer, and the checkpoint of it, "plain". So
// small a model of random weights says something else with every token.
class GenerationConfigVerbs : public ::testing::Test {
 protected:
  GenerationConfigVerbs() {
    tokenizer_ = load_huggingface(test::tokenizer_fixtures() / "llama2");
    std::string config = test::llama_config(2);
    config.replace(config.find("40"), 2, std::to_string(tokenizer_->vocab()));
    test::write_huggingface_folder(folder_, "hf", config, DType::kF32, random_);
    for (const char* name : {"tokenizer.json", "tokenizer_config.json"}) {
      fs::copy(test::tokenizer_fixtures() / "llama2" / name, folder_ / "hf" / name);
    }
    EXPECT_EQ(kvloom({"convert", "hf", "plain"}).status, 0);
  }

  test::ProcessResult kvloom(Words words) const {
    words.insert(words.begin(), KVLOOM_BINARY);
    test::ProcessOptions options;
    options.folder = folder_.path();
    return test::run_process(std::move(words), options);
  }

  // The checkpoint of the same model with that generation_config.json.
  void make(const std::string& name, const nlohmann::json& generation) {
    folder_.write("hf/generation_config.json", generation.dump());
    const test::ProcessResult result = kvloom({"convert", "hf", name});
    EXPECT_EQ(result.status, 0) << result.error;
  }

  nlohmann::json generated(const std::string& checkpoint, Words words) const {
    words.insert(words.begin(), {"generate", "--checkpoint", checkpoint, "--prompt", "one", "--json",
                                 "--max-new-tokens", "12", "--seed", "5"});
    const test::ProcessResult result = kvloom(words);
    EXPECT_EQ(result.status, 0) << result.error;
    return nlohmann::json::parse(result.output);
  }

  // The likeliest ids, one after the other, whatever they end.
  Ids greedy_ids(std::size_t count) const {
    CachingCpuAllocator allocator;
    const LoadedModel loaded = load_model((folder_ / "plain").string(), DType::kF32, allocator);
    Decoder decoder(*loaded.model, 1, 32);
    Ids prompt = tokenizer_->start_ids();
    tokenizer_->encode("one", prompt);
    Ids ids;
    for (std::size_t i = 0; ids.size() < count; ++i) {
      const std::int32_t id = i < prompt.size() ? prompt[i] : ids.back();
      const Tensor logits = decoder.step(Tensor::of<std::int32_t>(allocator, {1}, std::span(&id, 1)));
      if (i + 1 < prompt.size()) continue;
      const auto values = logits.as<float>();
      ids.push_back(static_cast<std::int32_t>(std::ranges::max_element(values) - values.begin()));
    }
    return ids;
  }

  test::Random random_;
  TemporaryFolder folder_;
  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_F(GenerationConfigVerbs, EachEndOfTheModelEndsTheTextUnlessIgnored) {
  const Ids ids = greedy_ids(12);
  const std::int32_t end = ids[static_cast<std::size_t>(random_.integer(0, 11))];
  const auto ends = [&](std::int32_t id) { return id == end || id == tokenizer_->separator(); };
  const auto before = std::ranges::find_if(ids, ends) - ids.begin();
  std::int32_t never = 0;
  while (std::ranges::find(ids, never) != ids.end()) ++never;
  make("one-end", {{"eos_token_id", end}});
  make("ends", {{"eos_token_id", {never, end}}});
  for (const char* checkpoint : {"one-end", "ends"}) {
    const nlohmann::json result = generated(checkpoint, {"--temperature", "0"});
    EXPECT_EQ(result["new_tokens"], before) << checkpoint;
    EXPECT_EQ(result["finish_reason"], "stop");
    EXPECT_EQ(generated(checkpoint, {"--temperature", "0", "--ignore-eos"})["new_tokens"], 12);
  }
  EXPECT_EQ(generated("plain", {"--temperature", "0", "--ignore-eos"})["finish_reason"], "length");
}

TEST_F(GenerationConfigVerbs, TheModelsSamplingCountsWhereNoOptionIsGiven) {
  const nlohmann::json said = {
      {"temperature", 3.5}, {"top_k", 50}, {"top_p", 0.9}, {"min_p", 0.001}, {"repetition_penalty", 1.7}};
  make("says", said);
  Words options = {"--ignore-eos"};
  for (const auto& [name, value] : said.items()) {
    std::string option = "--" + name;
    std::ranges::replace(option, '_', '-');
    options.insert(options.end(), {option, value.dump()});
  }
  const nlohmann::json explicitly = generated("plain", options);
  EXPECT_EQ(generated("says", {"--ignore-eos"})["text"], explicitly["text"]);
  EXPECT_NE(generated("plain", {"--ignore-eos"})["text"], explicitly["text"]);
  Words own = {"--ignore-eos",
               "--temperature",
               "0.8",
               "--top-k",
               "0",
               "--top-p",
               "1",
               "--min-p",
               "0",
               "--repetition-penalty",
               "1"};
  EXPECT_EQ(generated("says", own)["text"], generated("plain", {"--ignore-eos"})["text"]) << "options win";
  make("greedy", {{"temperature", 0.0}});
  EXPECT_EQ(generated("greedy", {})["text"], generated("plain", {"--temperature", "0"})["text"]);
}

TEST_F(GenerationConfigVerbs, ASettingThatMakesNoSenseIsTheModelsUnlessAnOptionTakesItsPlace) {
  make("wrong", {{"top_p", 2}});
  const test::ProcessResult refused = kvloom({"generate", "--checkpoint", "wrong", "--prompt", "one"});
  EXPECT_EQ(refused.status, 2);
  EXPECT_EQ(refused.error_lines(), 1);
  EXPECT_THAT(refused.error, HasSubstr("wrong: generation_config.json: "));
  EXPECT_THAT(refused.error, HasSubstr("top_p"));
  EXPECT_EQ(kvloom({"generate", "--checkpoint", "wrong", "--prompt", "one", "--top-p", "0.9"}).status, 0);
}

TEST_F(GenerationConfigVerbs, ComesBackOutByteForByteButNotFromATrainingOnAnotherTokenizersTokens) {
  make("with", {{"eos_token_id", {5, 6}}, {"temperature", 0.6}});
  ASSERT_EQ(kvloom({"convert", "with", "back", "--to", "hf"}).status, 0);
  EXPECT_EQ(read_bytes(folder_ / "back/generation_config.json"), read_bytes(folder_ / "hf/generation_config.json"));

  test::TinyRun run;  // of bytes
  std::ofstream(run / "more.pbtxt") << "data { tokens: \"tokens.h5\" any_tokenizer: true }\n"
                                    << "train { steps: 1 global_batch: 2 micro_batch: 2 start_from: \""
                                    << (folder_ / "with").string() << "\" }\noutput { directory: \"more\" }\n";
  const test::ProcessResult trained = run.kvloom({"train", "--config", "more.pbtxt"});
  ASSERT_EQ(trained.status, 0) << trained.error;
  ASSERT_EQ(run.kvloom({"convert", "more", "hf", "--to", "hf"}).status, 0);
  EXPECT_EQ(nlohmann::json::parse(read_bytes(run / "hf/generation_config.json")),
            (nlohmann::json{{"temperature", 0.6}, {"eos_token_id", 256}}))
      << "the end of a text of bytes";
  EXPECT_FALSE(nlohmann::json::parse(read_bytes(run / "hf/config.json")).contains("bos_token_id"));
}

}  // namespace
}  // namespace kvloom
