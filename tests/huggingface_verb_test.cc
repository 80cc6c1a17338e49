// A Hugging Face tokenizer from the command line: into the token file, on into the checkpoint, and out in a text.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "data/token_file.h"
#include "infer/tokenizer.h"
#include "tests/support/random.h"
#include "tests/support/tiny_run.h"
#include "tests/support/tokenizer_fixture.h"

namespace kvloom {
namespace {

using ::testing::HasSubstr;

std::string fixture(const std::string& name) { return (test::tokenizer_fixtures() / name).string(); }

TEST(HuggingFaceVerbs, ADocumentStandsBetweenStartAndSeparatorAndComesBackHoweverLong) {
  test::Random random;
  test::TinyRun run;
  std::string text = "It starts with a word.\n";
  while (text.size() < 200'000) text += "  word" + std::to_string(random.integer(0, 999)) + " é的🙂\tx = y;\n";
  std::ofstream(run / "long.txt") << text;
  for (const char* name : {"llama2", "llama3", "qwen", "mistral"}) {
    const test::ProcessResult result =
        run.kvloom({"tokenize", "--input", "long.txt", "--tokenizer", "hf:" + fixture(name), "--valid-fraction", "0",
                    "--output", "hf.h5"});
    ASSERT_EQ(result.status, 0) << result.error;
    const TokenFile file(run / "hf.h5");
    EXPECT_EQ(file.tokenizer_kind(), "huggingface");
    const auto tokenizer = make_tokenizer(file.tokenizer_kind(), file.tokenizer_model(), "token file");
    std::vector<std::int32_t> tokens(static_cast<std::size_t>(file.count(Part::kTraining)));
    file.read(Part::kTraining, 0, tokens);
    const std::vector<std::int32_t> start = tokenizer->start_ids();
    ASSERT_GE(tokens.size(), start.size());
    EXPECT_TRUE(std::equal(start.begin(), start.end(), tokens.begin())) << name;
    EXPECT_EQ(std::ranges::count(tokens, tokenizer->separator()), 1) << name;
    EXPECT_EQ(tokens.back(), tokenizer->separator()) << name;
    EXPECT_TRUE(tokenizer->decode(tokens) == text) << name;
  }
}

TEST(HuggingFaceVerbs, ACheckpointCarriesTheTokenizerThatGenerateUses) {
  test::TinyRun run;
  ASSERT_EQ(run.kvloom({"tokenize", "--input", "text.txt", "--tokenizer", "hf:" + fixture("llama2") + "/tokenizer.json",
                        "--valid-fraction", "0.1", "--output", "tokens.h5"})
                .status,
            0);
  const auto tokenizer = load_huggingface(fixture("llama2"));
  const test::ProcessResult trained =
      run.train({"--set", "model.vocab=" + std::to_string(tokenizer->vocab()), "--set", "train.steps=2"});
  ASSERT_EQ(trained.status, 0) << trained.error;
  const test::ProcessResult result = run.kvloom({"generate", "--checkpoint", "out", "--prompt", "line 3 é",
                                                 "--temperature", "1", "--max-new-tokens", "8", "--json"});
  ASSERT_EQ(result.status, 0) << result.error;
  const auto json = nlohmann::json::parse(result.output);
  EXPECT_EQ(json["prompt_tokens"], 1 + tokenizer->encode("line 3 é").size()) << "BOS and the prompt";
  EXPECT_TRUE(is_well_formed(json["text"].get<std::string>()));
}

TEST(HuggingFaceVerbs, AChatTemplateMakesThePromptWhatAUserSays) {
  test::TinyRun run;
  ASSERT_EQ(run.kvloom({"tokenize", "--input", "text.txt", "--tokenizer", "hf:" + fixture("qwen"), "--valid-fraction",
                        "0.1", "--output", "tokens.h5"})
                .status,
            0);
  const auto tokenizer = load_huggingface(fixture("qwen"));
  const test::ProcessResult trained =
      run.train({"--set", "model.vocab=" + std::to_string(tokenizer->vocab()), "--set", "train.steps=1"});
  ASSERT_EQ(trained.status, 0) << trained.error;
  const auto generate = [&](std::vector<std::string> words) {
    words.insert(words.begin(), {"generate", "--checkpoint", "out", "--prompt", "a", "--max-new-tokens", "4"});
    return run.kvloom(words);
  };
  const test::ProcessResult said = generate({"--chat-template", "chatml", "--system", "b", "--json"});
  ASSERT_EQ(said.status, 0) << said.error;
  const std::string prompt = "<|im_start|>system\nb<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n";
  EXPECT_EQ(nlohmann::json::parse(said.output)["prompt_tokens"], tokenizer->encode(prompt).size());
  EXPECT_EQ(generate({"--chat-template", "auto"}).status, 2);
  EXPECT_THAT(generate({"--chat-template", "auto"}).error, HasSubstr("out: the tokenizer has no chat template"));
  EXPECT_THAT(generate({"--chat-template", "llama-3"}).error, HasSubstr("'<|eot_id|>' is no token"));
  EXPECT_THAT(generate({"--system", "b"}).error, HasSubstr("--chat-template"));
}

TEST(HuggingFaceVerbs, AnExportedSentencePieceModelTokenizesAsTheOneThatItWasTrainedWith) {
  test::TinyRun run;
  const auto tokenize = [&](const std::string& tokenizer, const std::string& output) {
    return run.kvloom(
        {"tokenize", "--input", "text.txt", "--tokenizer", tokenizer, "--valid-fraction", "0.1", "--output", output});
  };
  ASSERT_EQ(tokenize("train-sentencepiece:300", "tokens.h5").status, 0);
  ASSERT_EQ(run.train({"--set", "model.vocab=300", "--set", "train.steps=1"}).status, 0);
  ASSERT_EQ(run.kvloom({"convert", "out", "hf", "--to", "hf"}).status, 0);
  ASSERT_TRUE(std::filesystem::exists(run / "hf/tokenizer.json"));
  const std::string identity = TokenFile(run / "tokens.h5").identity();
  for (const char* named : {"hf:hf", "hf:hf/"}) {
    const test::ProcessResult result = tokenize(named, "again.h5");
    EXPECT_EQ(result.status, 0) << result.error;
    EXPECT_EQ(TokenFile(run / "again.h5").identity(), identity) << named;
  }
  // The model's file alone is read with the settings beside it: another tokenizer, with the same ids.
  ASSERT_EQ(tokenize("hf:hf/tokenizer.model", "again.h5").status, 0);
  const auto ids = [&](const char* file) {
    const TokenFile tokens(run / file);
    std::vector<std::int32_t> all(static_cast<std::size_t>(tokens.count(Part::kTraining)));
    tokens.read(Part::kTraining, 0, all);
    return all;
  };
  EXPECT_EQ(ids("again.h5"), ids("tokens.h5"));
  const test::ProcessResult needle = run.kvloom({"eval", "needle", "text.txt", "needle.jsonl", "--tokenizer", "hf:hf",
                                                 "--lengths", "200", "--items", "1", "--depths", "0"});
  EXPECT_EQ(needle.status, 0) << needle.error;
  const test::ProcessResult own = tokenize("hf:hf", "hf/tokenizer.model");
  EXPECT_EQ(own.status, 2);
  EXPECT_THAT(own.error, HasSubstr("is the tokenizer's"));
}

// Every file that is read for a tokenizer is the tokenizer's, also when it is named by its own path.
TEST(HuggingFaceVerbs, AnOutputTakesTheNameOfNoFileOfTheTokenizer) {
  test::TinyRun run;
  std::filesystem::copy(fixture("llama2"), run / "hf", std::filesystem::copy_options::recursive);
  std::ofstream(run / "hf/chat_template.jinja") << "mine";
  for (const char* named : {"hf:hf", "hf:hf/tokenizer.json"}) {
    for (const char* name : {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}) {
      const std::string output = std::string("hf/") + name;
      const std::string before = test::content_of(run / output);
      const test::ProcessResult result =
          run.kvloom({"tokenize", "--input", "text.txt", "--tokenizer", named, "--output", output});
      EXPECT_EQ(result.status, 2) << named << " " << name;
      EXPECT_THAT(result.error, HasSubstr("is the tokenizer's"));
      EXPECT_EQ(test::content_of(run / output), before);
    }
  }
}

TEST(HuggingFaceVerbs, ATokenizerThatCannotBeReadIsRefusedWithOneLine) {
  test::TinyRun run;
  std::filesystem::create_directory(run / "empty");
  std::ofstream(run / "bad.json") << R"({"model": {"type": "Unigram", "vocab": []}})";
  for (const auto& [tokenizer, reason] : std::vector<std::pair<std::string, std::string>>{
           {"hf:bad.json", "'bad.json': tokenizer.json.model: type 'Unigram'"},
           {"hf:none", "none"},
           {"hf:empty", "'empty': holds no tokenizer: neither tokenizer.json nor tokenizer.model"},
           {"train-sentencepiece:many", "sentencepiece:FILE, hf:FILE-OR-FOLDER and train-sentencepiece:VOCAB"},
           {"hf:", "--tokenizer 'hf:'"}}) {
    const test::ProcessResult result =
        run.kvloom({"tokenize", "--input", "text.txt", "--tokenizer", tokenizer, "--output", "x.h5"});
    EXPECT_EQ(result.status, 2);
    EXPECT_EQ(result.error_lines(), 1) << result.error;
    EXPECT_THAT(result.error, HasSubstr(reason));
    EXPECT_FALSE(std::filesystem::exists(run / "x.h5"));
  }
}

}  // namespace
}  // namespace kvloom
