// `kvloom generate` and `kvloom eval` as a user runs them, over one tiny model.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "core/convert/plan_models.h"
#include "core/decoder.h"
#include "data/token_file.h"
#include "infer/tokenizer.h"
#include "tests/support/huggingface_folder.h"
#include "tests/support/mpi_run.h"
#include "tests/support/tiny_run.h"
#include "train/loaded_model.h"

namespace kvloom {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;
using Words = std::vector<std::string>;

constexpr std::int64_t kContext = 32;
const std::string kPrompt = "line ";

class GenerateVerb : public ::testing::Test {
 protected:
  // Trained once for all tests: they only read.
  static void SetUpTestSuite() { run_ = test::trained_tiny_run().release(); }
  static void TearDownTestSuite() { delete run_; }

  static test::ProcessResult kvloom(const std::string& verb, const Words& words) {
    Words all = {verb, "--checkpoint", "out"};
    all.insert(all.end(), words.begin(), words.end());
    return run_->kvloom(all);
  }

  static nlohmann::json json(const std::string& verb, Words words) {
    words.push_back("--json");
    const test::ProcessResult result = kvloom(verb, words);
    EXPECT_EQ(result.status, 0) << result.error;
    EXPECT_EQ(result.error, "");
    return nlohmann::json::parse(result.output);
  }

  static nlohmann::json generated(Words words) {
    words.insert(words.begin(), {"--prompt", kPrompt});
    return json("generate", words);
  }

  static void expect_refused(const std::string& verb, const Words& words, const std::string& reason) {
    const test::ProcessResult result = kvloom(verb, words);
    EXPECT_EQ(result.status, 2) << result.error;
    EXPECT_EQ(result.error_lines(), 1) << result.error;
    EXPECT_THAT(result.error, StartsWith("kvloom " + verb + ": "));
    EXPECT_THAT(result.error, HasSubstr(reason));
    EXPECT_EQ(result.output, "");
  }

  static test::TinyRun* run_;
};

test::TinyRun* GenerateVerb::run_ = nullptr;

Words lines_of(const std::string& text) {
  Words lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

// Token by token from the first one on, with no prefill: the definition of the model.
std::string greedy_text(const std::filesystem::path& output, const std::string& prompt, std::int64_t count) {
  CachingCpuAllocator allocator;
  const LoadedModel loaded = load_model(output.string(), DType::kF32, allocator);
  const auto tokenizer = make_byte_tokenizer();
  std::vector<std::int32_t> tokens = tokenizer->encode(prompt);
  const std::size_t given = tokens.size();
  Decoder decoder(*loaded.model, 1, kContext);
  for (std::size_t i = 0; i < tokens.size() && tokens.size() < given + static_cast<std::size_t>(count); ++i) {
    Tensor token = Tensor::empty(allocator, {1}, DType::kI32);
    token.as<std::int32_t>()[0] = tokens[i];
    const Tensor logits = decoder.step(token);
    if (i + 1 < tokens.size()) continue;
    const auto values = logits.as<float>();
    const auto best = static_cast<std::int32_t>(std::ranges::max_element(values) - values.begin());
    if (best == tokenizer->separator()) break;
    tokens.push_back(best);
  }
  return tokenizer->decode(std::span(tokens).subspan(given));
}

TEST_F(GenerateVerb, EqualSeedsGiveEqualTextsAndOthersAnother) {
  const Words hot = {"--temperature", "1", "--max-new-tokens", "20", "--seed"};
  const auto with_seed = [&](const std::string& seed) {
    Words words = hot;
    words.push_back(seed);
    return generated(words)["text"];
  };
  EXPECT_EQ(with_seed("7"), with_seed("7"));
  EXPECT_NE(with_seed("7"), with_seed("8"));
}

TEST_F(GenerateVerb, AtTemperatureZeroIsGreedyTokenByToken) {
  const Words words = {"--temperature", "0", "--max-new-tokens", "20", "--tolerance", "0"};
  const std::string text = generated(words)["text"];
  EXPECT_EQ(text, greedy_text(*run_ / "out", kPrompt, 20));
  Words another = words;
  another.insert(another.end(), {"--seed", "99"});
  EXPECT_EQ(generated(another)["text"], text);
}

TEST_F(GenerateVerb, PrintsPromptAndTextAndThenItsSpeed) {
  const Words words = {"--temperature", "0", "--max-new-tokens", "12"};
  const std::string text = generated(words)["text"];
  Words all = {"--prompt", kPrompt};
  all.insert(all.end(), words.begin(), words.end());
  const test::ProcessResult result = kvloom("generate", all);
  EXPECT_EQ(result.status, 0) << result.error;
  EXPECT_EQ(result.output, kPrompt + text + "\n");
  EXPECT_EQ(result.error_lines(), 1);
  EXPECT_THAT(result.error, HasSubstr("tokens/s"));
  std::ofstream(*run_ / "prompt.txt") << kPrompt;
  Words from_file = {"--prompt-file", "prompt.txt"};
  from_file.insert(from_file.end(), words.begin(), words.end());
  EXPECT_EQ(kvloom("generate", from_file).output, text + "\n") << "a prompt of a file is not repeated";
}

// What JSON cannot hold, text can: this model's bytes are no UTF-8 yet.
TEST_F(GenerateVerb, StopsBeforeTheStopString) {
  const auto text_of = [](const Words& stops) {
    Words words = {"--prompt", kPrompt, "--temperature", "1", "--seed", "5", "--max-new-tokens", "20"};
    words.insert(words.end(), stops.begin(), stops.end());
    const test::ProcessResult result = kvloom("generate", words);
    EXPECT_EQ(result.status, 0) << result.error;
    return result.output.substr(kPrompt.size(), result.output.size() - kPrompt.size() - 1);
  };
  const std::string text = text_of({});
  ASSERT_EQ(text.size(), 20);
  ASSERT_EQ(text.find('\0'), std::string::npos) << "no argument can hold it; take another seed";
  for (const std::size_t begin : {0, 3, 6, 17}) {
    const std::string stop = text.substr(begin, 3);
    EXPECT_EQ(text_of({"--stop", "never to be found", "--stop", stop}), text.substr(0, text.find(stop)));
  }
  EXPECT_EQ(text_of({"--stop", text.substr(17) + "and more"}), text) << "the start of a stop string is no stop";
}

TEST_F(GenerateVerb, MakesNoMoreTokensThanAskedOrThanFit) {
  for (const int count : {1, 2, 9}) {
    const nlohmann::json result = generated({"--temperature", "1", "--max-new-tokens", std::to_string(count)});
    EXPECT_EQ(result["new_tokens"], count);
  }
  const nlohmann::json all = generated({"--temperature", "0", "--max-new-tokens", "1000"});
  EXPECT_EQ(all["prompt_tokens"].get<int>() + all["new_tokens"].get<int>(), kContext);
}

TEST_F(GenerateVerb, JsonHoldsSpeedsAndTheBytesOfTheCache) {
  const nlohmann::json result = generated({"--temperature", "1", "--max-new-tokens", "10"});
  EXPECT_EQ(result["prompt_tokens"], kPrompt.size());
  EXPECT_GT(result["prefill_tokens_per_second"], 0.0);
  EXPECT_GT(result["decode_tokens_per_second"], 0.0);
  EXPECT_GE(result["passes_per_token"], 1.0);
  EXPECT_LE(result["passes_per_token"], kPrompt.size());
  EXPECT_EQ(result["capped"], false);
  EXPECT_EQ(result["tokens"].size(), result["new_tokens"]);
  // sandwich-top:3 keeps K/V of 3 layers, 2 KV heads of 8 values each; the last token leaves none.
  const std::int64_t per_token = 3 * 2 * 2 * 8 * 4;
  EXPECT_EQ(result["kv_bytes_per_token"], per_token);
  EXPECT_EQ(result["kv_bytes"], per_token * (result["prompt_tokens"].get<int>() + result["new_tokens"].get<int>() - 1));
}

TEST_F(GenerateVerb, MistakesAreAnsweredWithOneLineAndStatus2) {
  expect_refused("generate", {"--prompt", std::string(40, 'a')}, "the context is 32");
  expect_refused("generate", {"--prompt", std::string(32, 'a')}, "one must be left");
  expect_refused("generate", {}, "--prompt");
  expect_refused("generate", {"--prompt", "a", "--prompt-file", "text.txt"}, "--prompt");
  expect_refused("generate", {"--prompt-file", "none.txt"}, "none.txt");
  expect_refused("generate", {"--prompt", "a", "--temperature", "-1"}, "temperature");
  expect_refused("generate", {"--prompt", "a", "--repetition-penalty", "1e-39"}, "repetition_penalty");
  expect_refused("generate", {"--prompt", "a", "--max-new-tokens", "0"}, "--max-new-tokens");
  expect_refused("generate", {"--prompt", "a", "--tolerance", "-1"}, "--tolerance");
  expect_refused("generate", {"--prompt", "a", "--kv-memory", "much"}, "--kv-memory: 'much'");
  expect_refused("generate", {"--prompt", "a", "--kv-memory", "10"}, "10");
  expect_refused("generate", {"--prompt", "a", "--weights", "int4"}, "--weights: 'int4'");
  expect_refused("generate", {"--prompt", "a", "--kv-dtype", "f16"}, "--kv-dtype: 'f16'");
  expect_refused("generate", {"--prompt", "a", "--page-size", "8"}, "--page-size");
  expect_refused("generate", {"--prompt", "a", "--logprobs", "2"}, "--logprobs: are written as JSON");
  expect_refused("generate", {"--prompt", "a", "--strict"}, "--strict");
  expect_refused("generate", {"--prompt", "a", "--resume", "auto"}, "--resume auto");
  expect_refused("generate", {"--prompt", "a", "--device", "cuda"}, "the engine runs on CPUs so far");
  expect_refused("generate", {"--prompt", "a", "--prompts", "text.txt"}, "--prompts");
  expect_refused("generate", {"--prompts", "none.jsonl"}, "none.jsonl");
  expect_refused("generate", {"--prompts", "text.txt", "--output", "text.txt"}, "has the prompts");
  expect_refused("generate", {"--prompt", "a", "--output", "none/out.jsonl"}, "none");
  expect_refused("generate", {"--prompt", "a", "--seed", "-1"}, "--seed");
}

// A checkpoint as from a folder of Hugging Face, whose tokenizer knows 257 ids and whose model 40.
TEST_F(GenerateVerb, ATokenizerOfMoreIdsThanTheModelIsRefused) {
  test::Random random;
  const TemporaryFolder folder;
  test::write_huggingface_folder(folder, "hf", test::llama_config(2), DType::kF32, random);
  const ModelSource source = open_model_source(folder / "hf");
  const TargetModel target{
      .form = ModelForm::kCheckpoint, .model = source.model, .passes = source.passes, .family = {}, .dtype = {}};
  PlannedConversion conversion(plan_conversion(source, target), *source.tensors);
  proto::Manifest manifest = checkpoint_manifest(source, target);
  manifest.set_tokenizer_kind("bytes");
  run_conversion(conversion, *make_checkpoint_target(folder / "model", manifest));
  const test::ProcessResult result =
      run_->kvloom({"generate", "--checkpoint", (folder / "model").string(), "--prompt", "line 3"});
  EXPECT_EQ(result.status, 2) << result.error;
  EXPECT_EQ(result.error_lines(), 1) << result.error;
  EXPECT_THAT(result.error, HasSubstr("has token 108 of a tokenizer of 257 ids; the model has 40"));
  EXPECT_EQ(result.output, "");
}

TEST_F(GenerateVerb, OutputThatCannotBeWrittenIsAFailure) {
  for (const char* arguments : {"generate --checkpoint out --prompt a", "generate --checkpoint out --prompt a --json",
                                "eval --checkpoint out --data tokens.h5 --limit 1", "inspect out --json",
                                "kvmap --layers 4 --map none", "generate --help", "--version"}) {
    test::ProcessOptions options;
    options.folder = run_->path();
    const std::string command = std::string(KVLOOM_BINARY) + " " + arguments + " > /dev/full";
    const test::ProcessResult result = test::run_process({"/bin/sh", "-c", command}, options);
    EXPECT_EQ(result.status, 1) << arguments;
    EXPECT_EQ(result.error_lines(), 1) << result.error;
    EXPECT_THAT(result.error, HasSubstr("standard output")) << arguments;
  }
}

// At temperature 0 a prompt's text is the same whatever runs beside it.
TEST_F(GenerateVerb, SeveralPromptsGiveALineEachInTheirOrder) {
  const Words options = {"--temperature", "0", "--max-new-tokens", "9", "--n", "2", "--logprobs", "1"};
  Words all = {"--prompt", "line 1", "--prompt", "", "--prompt", "line 22 of"};
  all.insert(all.end(), options.begin(), options.end());
  const test::ProcessResult result = kvloom("generate", all);
  EXPECT_EQ(result.status, 0) << result.error;
  const Words lines = lines_of(result.output);
  ASSERT_EQ(lines.size(), 3U);
  for (const auto& [index, prompt] :
       std::vector<std::pair<int, std::string>>{{0, "line 1"}, {1, ""}, {2, "line 22 of"}}) {
    Words one = {"--prompt", prompt};
    one.insert(one.end(), options.begin(), options.end());
    const nlohmann::json alone = json("generate", one);
    const nlohmann::json line = nlohmann::json::parse(lines[static_cast<std::size_t>(index)]);
    EXPECT_EQ(line["index"], index);
    EXPECT_EQ(line["prompt_tokens"], alone["prompt_tokens"]);
    for (const int choice : {0, 1}) {
      for (const char* field : {"text", "tokens", "finish_reason", "logprobs"}) {
        EXPECT_EQ(line["choices"][choice][field], alone["choices"][choice][field]) << field;
      }
    }
  }
}

TEST_F(GenerateVerb, TextsOfOnePromptAreShownOneAfterTheOther) {
  const Words words = {"--prompt", kPrompt, "--seed", "3", "--max-new-tokens", "5", "--ignore-eos"};
  Words three = words;
  three.insert(three.end(), {"--n", "3"});
  const test::ProcessResult result = kvloom("generate", three);
  EXPECT_EQ(result.status, 0) << result.error;
  const std::string one = kvloom("generate", words).output;
  EXPECT_THAT(result.output, StartsWith("== 1 of 3\n" + one + "== 2 of 3\n" + kPrompt));
  EXPECT_THAT(result.output, HasSubstr("== 3 of 3\n" + kPrompt));
}

TEST_F(GenerateVerb, APromptMayComeOnStandardInput) {
  test::ProcessOptions options;
  options.folder = run_->path();
  const std::string generate = std::string(KVLOOM_BINARY) + " generate --checkpoint out --temperature 0 --json ";
  const auto piped = [&](const std::string& before, const std::string& arguments) {
    const test::ProcessResult result =
        test::run_process({"/bin/sh", "-c", before + " | " + generate + arguments}, options);
    EXPECT_EQ(result.status, 0) << result.error;
    return nlohmann::json::parse(result.output);
  };
  const nlohmann::json given = json("generate", {"--prompt", "line 7\nline", "--temperature", "0"});
  EXPECT_EQ(piped("printf 'line 7\nline'", "--prompt-file -")["text"], given["text"]);
  EXPECT_EQ(piped("printf '{\"prompt\": \"line 7\\\\nline\"}'", "--prompts -")["text"], given["text"]);
}

TEST_F(GenerateVerb, PassesThatWereCutShortAreSaid) {
  const Words words = {
      "--prompt", "line 3 of a small te", "--max-new-tokens", "4", "--tolerance", "0", "--prefill-passes", "1"};
  const test::ProcessResult result = kvloom("generate", words);
  EXPECT_EQ(result.status, 0) << result.error;
  EXPECT_EQ(result.error_lines(), 2) << result.error;
  EXPECT_THAT(result.error, HasSubstr("had not settled within --prefill-passes 1"));
  const nlohmann::json said = json("generate", words);
  EXPECT_EQ(said["capped"], true);
  EXPECT_EQ(said["passes_per_token"], 1.0);
}

// Of many prompts with options of their own, one in twenty of which cannot be used.
std::string many_prompts(int count) {
  std::string lines;
  for (int i = 0; i < count; ++i) {
    nlohmann::json line = {{"prompt", i % 20 == 7 ? nlohmann::json(3) : nlohmann::json(fmt::format("line {}", i))},
                           {"seed", i},
                           {"ignore_eos", true}};
    if (i % 5 == 1) {
      line.erase("prompt");
      line["tokens"] = {65 + i % 26, 97, 10 + i % 7};
    }
    if (i % 7 == 3) line["n"] = 2;
    if (i % 11 == 4) line.update({{"temperature", 0}, {"max_new_tokens", 1 + i % 30}});
    if (i % 13 == 5) line.update({{"stop", {"e"}}, {"repetition_penalty", 1.2}, {"prompt_logprobs", 1}});
    lines += line.dump() + "\n";
  }
  return lines;
}

class ManyPrompts : public GenerateVerb {
 protected:
  static constexpr int kCount = 1000;

  void SetUp() override { std::ofstream(*run_ / "prompts.jsonl") << many_prompts(kCount); }

  // So few at one time that it takes a while.
  static Words words(const std::string& output, const Words& more = {}) {
    Words words = {"generate",
                   "--checkpoint",
                   "out",
                   "--prompts",
                   "prompts.jsonl",
                   "--max-sequences",
                   "3",
                   "--output",
                   output,
                   "--max-new-tokens",
                   "20",
                   "--logprobs",
                   "1"};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  static std::int64_t lines_in(const std::string& name) {
    const std::string content = test::content_of(*run_ / name);
    return std::count(content.begin(), content.end(), '\n');
  }
};

TEST_F(ManyPrompts, KilledTwiceTheOutputIsWholeAndTheSame) {
  test::Random random;
  const test::ProcessResult whole = run_->kvloom(words("whole.jsonl"));
  ASSERT_EQ(whole.status, 0) << whole.error;
  ASSERT_EQ(lines_in("whole.jsonl"), kCount);
  EXPECT_THAT(whole.error, HasSubstr("prompts.jsonl: line 8: 'prompt'"));
  EXPECT_THAT(whole.error, HasSubstr("50 lines could not be used"));
  for (const std::int64_t least : {random.integer(1, 100), random.integer(150, 600)}) {
    test::ProcessOptions options;
    options.signal_after = [&] { return lines_in("killed.jsonl") >= least; };
    options.signal = {SIGKILL, test::Milliseconds(random.integer(0, 3))};
    const test::ProcessResult killed = run_->kvloom(words("killed.jsonl", {"--resume", "auto"}), options);
    ASSERT_EQ(killed.status, -SIGKILL) << killed.error;
    ASSERT_LT(lines_in("killed.jsonl"), kCount);
    ASSERT_GE(lines_in("killed.jsonl"), least);
    // As a kill within a write would leave it.
    std::ofstream(*run_ / "killed.jsonl", std::ios::app) << "{\"index\":" << lines_in("killed.jsonl");
  }
  const auto known = lines_in("killed.jsonl");
  const test::ProcessResult last = run_->kvloom(words("killed.jsonl", {"--resume", "auto", "--json"}));
  ASSERT_EQ(last.status, 0) << last.error;
  EXPECT_EQ(test::content_of(*run_ / "killed.jsonl"), test::content_of(*run_ / "whole.jsonl"));
  EXPECT_FALSE(std::filesystem::exists(*run_ / "killed.jsonl.waiting"));
  const nlohmann::json summary = nlohmann::json::parse(last.output);
  EXPECT_EQ(summary["resumed"], known);
  EXPECT_EQ(summary["prompts"], kCount);
  EXPECT_GT(summary["new_tokens"], 0);
}

TEST_F(ManyPrompts, AnOutputOfOtherPromptsOrOptionsIsNotGoneOnWith) {
  std::ofstream(*run_ / "prompts.jsonl") << many_prompts(6);
  ASSERT_EQ(run_->kvloom(words("other.jsonl")).status, 0);
  const std::string before = test::content_of(*run_ / "other.jsonl");
  const auto refused = [&](const Words& more, const std::string& reason) {
    const Words all = words("other.jsonl", more);
    expect_refused("generate", Words(all.begin() + 3, all.end()), reason);
    EXPECT_EQ(test::content_of(*run_ / "other.jsonl"), before);
  };
  refused({}, "'other.jsonl' has content; right is --resume auto");
  refused({"--resume", "auto", "--seed", "4"}, "line 1: was made with another model or other options");
  refused({"--resume", "auto", "--tolerance", "0"}, "other options");
  std::ofstream(*run_ / "prompts.jsonl") << many_prompts(3) << "{\"prompt\": \"another\"}\n";
  refused({"--resume", "auto"}, "line 4: is of another prompt");
  std::ofstream(*run_ / "prompts.jsonl") << many_prompts(5);
  refused({"--resume", "auto"}, "line 6: the input has no such line");
  std::ofstream(*run_ / "prompts.jsonl") << many_prompts(8);
  EXPECT_EQ(run_->kvloom(words("other.jsonl", {"--resume", "auto"})).status, 0) << "a longer input goes on";
  EXPECT_EQ(lines_in("other.jsonl"), 8);
  std::ofstream(*run_ / "other.jsonl") << "{\"index\":0}\n";
  expect_refused("generate", {"--prompt", "a", "--output", "other.jsonl", "--resume", "auto"},
                 "is not what was written there");
}

TEST_F(ManyPrompts, AStrictRunEndsAtTheFirstBadLine) {
  const test::ProcessResult result = run_->kvloom(words("strict.jsonl", {"--strict"}));
  EXPECT_EQ(result.status, 2);
  EXPECT_EQ(result.error_lines(), 1) << result.error;
  EXPECT_THAT(result.error, HasSubstr("prompts.jsonl: line 8: 'prompt'"));
  EXPECT_EQ(lines_in("strict.jsonl"), 7);
}

class EvalVerb : public GenerateVerb {};

TEST_F(EvalVerb, SequentialLossIsThatOfAsManyPassesAsTokensWhateverTheMap) {
  const Words maps = {"sandwich-top:3", "3_3_3_3", "2_0_3_1"};
  for (std::size_t i = 0; i < maps.size(); ++i) {
    const std::string out = "map" + std::to_string(i);
    const test::ProcessResult trained =
        run_->train({"--set", "model.kv_map=" + maps[i], "--set", "train.steps=2", "--set", "output.directory=" + out});
    ASSERT_EQ(trained.status, 0) << trained.error;
    const auto loss = [&](Words words) {
      words.insert(words.begin(), {"eval", "--checkpoint", out, "--data", "tokens.h5", "--limit", "3", "--json"});
      const test::ProcessResult result = run_->kvloom(words);
      EXPECT_EQ(result.status, 0) << result.error;
      return nlohmann::json::parse(result.output);
    };
    const nlohmann::json sequential = loss({"--sequential"});
    const nlohmann::json parallel = loss({"--passes", std::to_string(kContext)});
    EXPECT_EQ(sequential["form"], "sequential");
    EXPECT_TRUE(sequential["passes"].is_null());
    EXPECT_EQ(parallel["form"], "parallel");
    EXPECT_EQ(parallel["passes"], kContext);
    EXPECT_EQ(sequential["tokens"], parallel["tokens"]);
    EXPECT_NEAR(sequential["loss"], parallel["loss"].get<double>(), 1e-4) << maps[i];
    EXPECT_NE(loss({"--passes", "1"})["loss"], parallel["loss"]) << "one pass does not see what upward readers see";
  }
}

TEST_F(EvalVerb, PrintsTheLossThatJsonHoldsAndTheLimitHolds) {
  const nlohmann::json all = json("eval", {"--data", "tokens.h5", "--limit", "3"});
  EXPECT_EQ(all["sequences"], 3);
  EXPECT_EQ(all["tokens"], 3 * kContext);
  EXPECT_EQ(all["step"], 20);
  EXPECT_DOUBLE_EQ(all["perplexity"], std::exp(all["loss"].get<double>()));
  const test::ProcessResult result = kvloom("eval", {"--data", "tokens.h5", "--limit", "3"});
  EXPECT_EQ(result.status, 0) << result.error;
  EXPECT_THAT(result.output, StartsWith(fmt::format("loss {:.4f} nats/token", all["loss"].get<double>())));
  // A model that has learnt something of its text beats one that knows nothing.
  EXPECT_LT(json("eval", {"--data", "tokens.h5", "--part", "training", "--limit", "3"})["loss"], std::log(257.0));
}

TEST_F(EvalVerb, RanksShareTheSequencesAndPrintOnceWhatOneRankPrints) {
  if (!test::has_mpirun()) GTEST_SKIP() << "no mpirun";
  const Words words = {"eval", "--checkpoint", "out", "--data", "tokens.h5", "--limit", "5", "--json"};
  const nlohmann::json alone = json("eval", {"--data", "tokens.h5", "--limit", "5"});
  Words program = words;
  program.insert(program.begin(), KVLOOM_BINARY);
  test::ProcessOptions options;
  options.folder = *run_ / "";
  const test::ProcessResult result = test::run_process(test::mpirun(3, program), options);
  ASSERT_EQ(result.status, 0) << result.error;
  EXPECT_EQ(nlohmann::json::parse(result.output), alone);
}

TEST_F(EvalVerb, MistakesAreAnsweredWithOneLineAndStatus2) {
  TokenFileWriter other(*run_ / "other.h5", {.vocab = 300, .tokenizer_kind = "bytes", .created_by = "test"});
  other.begin_document(Part::kTraining);
  other.append(Part::kTraining, std::vector<std::int32_t>(500, 299), 500);
  other.finish();
  expect_refused("eval", {"--data", "other.h5", "--part", "training"}, "vocabulary of 300; the model has 257");
  ASSERT_EQ(run_->kvloom({"tokenize", "--input", "text.txt", "--valid-fraction", "0", "--output", "whole.h5"}).status,
            0);
  expect_refused("eval", {"--data", "whole.h5"}, "whole.h5");
  expect_refused("eval", {"--data", "none.h5"}, "none.h5");
  expect_refused("eval", {"--data", "text.txt"}, "text.txt");
  expect_refused("eval", {"--data", "tokens.h5", "--passes", "0"}, "--passes");
  expect_refused("eval", {"--data", "tokens.h5", "--sequential", "--passes", "3"}, "--passes");
  expect_refused("eval", {"--data", "tokens.h5", "--passes", "5000"}, "--passes: 5000");
  expect_refused("eval", {"--data", "tokens.h5", "--limit", "0"}, "--limit");
  expect_refused("eval", {"--data", "tokens.h5", "--part", "test"}, "--part");
  expect_refused("eval", {}, "--data");
}

}  // namespace
}  // namespace kvloom
