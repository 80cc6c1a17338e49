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

TextEnds ends_in(const std::string& config, const std::string& generation) {
  return text_ends_of(origin_of(config, generation), 100, "model");
}

SamplingSettings sampling_in(const std::string& generation, const SamplingSettings& given = {}) {
  return with_sampling_of(origin_of("", generation), given, "model");
}

TEST(GenerationConfig, TakesOneEndOrManyAndThoseOfConfigJsonWhereThereIsNoSuchFile) {
  EXPECT_THAT(ends_in("", R"({"eos_token_id": 7})").ends, ElementsAre(7));
  EXPECT_THAT(ends_in("", R"({"eos_token_id": [7, 9, 8], "bos_token_id": 1})").ends, ElementsAre(7, 9, 8));
  const std::string config = R"({"eos_token_id": [3, 4], "bos_token_id": 5})";
  EXPECT_THAT(ends_in(config, R"({"eos_token_id": 7})").ends, ElementsAre(7));
  EXPECT_FALSE(ends_in(config, R"({"eos_token_id": 7})").start.has_value());
  EXPECT_TRUE(ends_in(config, R"({"eos_token_id": null, "bos_token_id": 2})").ends.empty());
  EXPECT_EQ(ends_in(config, R"({"bos_token_id": 2})").start, 2);
  EXPECT_THAT(ends_in(config, "").ends, ElementsAre(3, 4));
  EXPECT_EQ(ends_in(config, "").start, 5);
  EXPECT_THAT(ends_in("", R"({"eos_token_id": [100, 99, -1, 18446744073709551615]})").ends, ElementsAre(99))
      << "others are no tokens";
  EXPECT_TRUE(ends_in("", "").ends.empty());
}

TEST(GenerationConfig, OnlyDoSampleTrueSamplesUnlessATemperatureIsGiven) {
  EXPECT_EQ(sampling_in(R"({"temperature": 0.25, "do_sample": true})").temperature, 0.25f);
  EXPECT_EQ(sampling_in(R"({"do_sample": true})").temperature, 1.0f);
  EXPECT_EQ(sampling_in(R"({"temperature": null, "do_sample": true})").temperature, 1.0f);
  for (const char* greedy : {R"({"temperature": 0.25, "do_sample": false})", R"({"temperature": 0.25, "top_p": 0.6})",
                             R"({"do_sample": false})", R"({"do_sample": null})", "{}"}) {
    EXPECT_EQ(sampling_in(greedy).temperature, 0.0f) << greedy;
    EXPECT_EQ(sampling_in(greedy, {.temperature = 0.5f}).temperature, 0.5f) << greedy;
  }
  EXPECT_FALSE(sampling_in("").temperature.has_value());
}

TEST(GenerationConfig, AWholeTopKHoweverWrittenAndMinusOneIsAll) {
  EXPECT_EQ(sampling_in(R"({"top_k": 50})").top_k, 50);
  EXPECT_EQ(sampling_in(R"({"top_k": 50.0})").top_k, 50);
  EXPECT_EQ(sampling_in(R"({"top_k": -1})").top_k, 0);
  EXPECT_EQ(sampling_in(R"({"top_k": 0})").top_k, 0);
}

TEST(GenerationConfig, OfAnotherTypeIsRefusedWithFileAndFieldWhereItIsLookedAt) {
  const auto expect_refused = [](const std::string& text, const std::string& word, const auto& read) {
    try {
      read();
      ADD_FAILURE() << text;
    } catch (const InputError& error) {
      EXPECT_THAT(error.what(), HasSubstr("model: generation_config.json"));
      EXPECT_THAT(error.what(), HasSubstr(word));
    }
  };
  for (const char* text : {R"({"eos_token_id": "</s>"})", R"({"eos_token_id": [1, 2.5]})"}) {
    expect_refused(text, "eos_token_id", [&] { ends_in("", text); });
    sampling_in(text);
  }
  const SamplingSettings given{
      .temperature = 1.0f, .top_k = 1, .top_p = 1.0f, .min_p = 0.0f, .repetition_penalty = 1.0f};
  for (const auto& [text, word] :
       std::vector<std::pair<std::string, std::string>>{{R"({"top_k": -2})", "top_k"},
                                                        {R"({"top_k": 2.5})", "top_k"},
                                                        {R"({"top_k": "2"})", "top_k"},
                                                        {R"({"do_sample": 0})", "do_sample"},
                                                        {R"({"do_sample": true, "temperature": "hot"})", "temp"},
                                                        {R"({"min_p": []})", "min_p"}}) {
    expect_refused(text, word, [&] { sampling_in(text); });
    ends_in("", text);
    sampling_in(text, given);
  }
  for (const char* text : {"[]", "{", R"({"temperature": NaN})"}) {
    expect_refused(text, "no JSON", [&] { ends_in("", text); });
    expect_refused(text, "no JSON", [&] { sampling_in(text); });
    sampling_in(text, given);
  }
}

TEST(GenerationConfig, IdsGoWithTheTokenizerThatTheyAreOf) {
  proto::HuggingFaceOrigin origin = origin_of(R"({"vocab_size": 9, "eos_token_id": 3, "pad_token_id": 0})",
                                              R"({"eos_token_id": [7, 9], "bos_token_id": 1, "top_p": 0.5})");
  for (const char* name : {"tokenizer.json", "LICENSE", "vocab.json"}) origin.add_files()->set_name(name);
  forget_tokenizer(origin);
  const TextEnds left = text_ends_of(origin, 100, "model");
  EXPECT_TRUE(left.ends.empty());
  EXPECT_FALSE(left.start.has_value());
  EXPECT_EQ(with_sampling_of(origin, {}, "model").top_p, 0.5f) << "that is not the tokenizer's";
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

// Each alone, with a value by which the text of that seed is another one.
TEST_F(GenerationConfigVerbs, TheModelsSamplingCountsWhereNoOptionIsGiven) {
  for (const auto& [name, value] : std::vector<std::pair<std::string, nlohmann::json>>{
           {"temperature", 3.5}, {"top_k", 2}, {"top_p", 0.01}, {"min_p", 0.999}, {"repetition_penalty", 0.02}}) {
    // A penalty below 1 makes the likeliest of those that were there before.
    const double temperature = name == "repetition_penalty" ? 0.0 : 1.5;
    nlohmann::json said = {{"temperature", temperature}, {"do_sample", true}};
    said[name] = value;
    make("says-" + name, said);
    std::string option = "--" + name;
    std::ranges::replace(option, '_', '-');
    Words options = {"--ignore-eos"};
    if (name != "temperature") options.insert(options.end(), {"--temperature", std::to_string(temperature)});
    const std::string without = generated("plain", options)["text"];
    options.insert(options.end(), {option, value.dump()});
    const std::string explicitly = generated("plain", options)["text"];
    EXPECT_NE(explicitly, without) << name << " bites";
    EXPECT_EQ(generated("says-" + name, {"--ignore-eos"})["text"], explicitly) << name;
    // An option goes before it.
    const Words neutral = {"--ignore-eos",
                           "--temperature",
                           "1.5",
                           "--top-k",
                           "-1",
                           "--top-p",
                           "1",
                           "--min-p",
                           "0",
                           "--repetition-penalty",
                           "1"};
    EXPECT_EQ(generated("says-" + name, neutral)["text"], generated("plain", neutral)["text"]) << name;
  }
}

TEST_F(GenerationConfigVerbs, WithoutATemperatureTheTextIsThatOfOneOrTheLikeliest) {
  make("silent", {{"do_sample", true}});
  EXPECT_EQ(generated("silent", {"--ignore-eos"})["text"],
            generated("plain", {"--ignore-eos", "--temperature", "1"})["text"]);
  make("greedy", {{"do_sample", false}, {"temperature", 3.5}});
  EXPECT_EQ(generated("greedy", {})["text"], generated("plain", {"--temperature", "0"})["text"]);
  make("unsaid", {{"temperature", 3.5}});
  EXPECT_EQ(generated("unsaid", {})["text"], generated("plain", {"--temperature", "0"})["text"]);
  EXPECT_EQ(generated("plain", {"--ignore-eos"})["text"],
            generated("plain", {"--ignore-eos", "--temperature", "0.8"})["text"]);
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

TEST_F(GenerationConfigVerbs, LeavesAsItCameWhereItCannotBeRead) {
  for (const std::string text : {R"({"temperature": NaN})", R"({"eos_token_id": "</s>"})", "[1]"}) {
    folder_.write("hf/generation_config.json", text);
    fs::remove_all(folder_ / "with");
    fs::remove_all(folder_ / "back");
    ASSERT_EQ(kvloom({"convert", "hf", "with"}).status, 0);
    const test::ProcessResult result = kvloom({"convert", "with", "back", "--to", "hf"});
    ASSERT_EQ(result.status, 0) << result.error;
    EXPECT_THAT(result.error, HasSubstr("note: generation_config.json"));
    EXPECT_EQ(read_bytes(folder_ / "back/generation_config.json"), text);
  }
  folder_.write("hf/generation_config.json", R"({"do_sample": true, "temperature": "hot", "eos_token_id": 5})");
  ASSERT_EQ(kvloom({"convert", "hf", "hot"}).status, 0);
  const test::ProcessResult result = kvloom({"convert", "hot", "hot-back", "--to", "hf"});
  EXPECT_EQ(result.status, 0) << result.error;
  EXPECT_EQ(result.error.find("note:"), std::string::npos) << "its ends can be read: " << result.error;
  EXPECT_EQ(kvloom({"generate", "--checkpoint", "hot", "--prompt", "one"}).status, 2);
  EXPECT_EQ(kvloom({"generate", "--checkpoint", "hot", "--prompt", "one", "--temperature", "1"}).status, 0);
}

// kvloom reads no Unigram model; the weights convert all the same, and so does the tokenizer, for other programs.
TEST_F(GenerationConfigVerbs, ATokenizerThatCannotBeReadDoesNotKeepTheModelFromLeaving) {
  const std::string unigram = R"({"version": "1.0", "model": {"type": "Unigram", "vocab": [["<unk>", 0.0]]}})";
  folder_.write("hf/tokenizer.json", unigram);
  ASSERT_EQ(kvloom({"convert", "hf", "unigram"}).status, 0);
  const test::ProcessResult result = kvloom({"convert", "unigram", "back", "--to", "hf"});
  ASSERT_EQ(result.status, 0) << result.error;
  EXPECT_THAT(result.error, HasSubstr("Unigram"));
  EXPECT_EQ(read_bytes(folder_ / "back/tokenizer.json"), unigram);
}

}  // namespace
}  // namespace kvloom
