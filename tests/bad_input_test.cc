// What the user gets wrong is answered with one line and exit status 2; what fails while running, with 1.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "data/token_file.h"
#include "tests/support/mpi_run.h"
#include "tests/support/plain_rights.h"
#include "tests/support/random.h"
#include "tests/support/sanitized.h"
#include "tests/support/tiny_run.h"

namespace kvloom {
namespace {

using ::testing::HasSubstr;

class BadInput : public ::testing::Test {
 protected:
  void expect_refused(const test::ProcessResult& result, const std::vector<std::string>& words, int status = 2) {
    EXPECT_EQ(result.status, status) << result.error;
    EXPECT_EQ(result.error_lines(), 1) << result.error;
    for (const std::string& word : words) EXPECT_THAT(result.error, HasSubstr(word));
  }

  std::string train_once() {
    const test::ProcessResult result = run_.train({"--set", "train.steps=2"});
    EXPECT_EQ(result.status, 0) << result.error;
    return "out/step-00000002";
  }

  void flip_bit(const std::filesystem::path& path) {
    std::string bytes = read_bytes(path);
    const auto at = static_cast<std::size_t>(random_.integer(0, static_cast<std::int64_t>(bytes.size()) - 1));
    bytes[at] = static_cast<char>(bytes[at] ^ (1 << random_.integer(0, 7)));
    std::ofstream(path, std::ios::binary) << bytes;
  }

  test::Random random_;
  test::TinyRun run_;
};

TEST_F(BadInput, InTheConfigIsNamedWithItsPlace) {
  std::ofstream(run_ / "unknown.pbtxt") << "model {\n  layer: 4\n}\n";
  expect_refused(run_.kvloom({"train", "--config", "unknown.pbtxt"}), {"unknown.pbtxt:2:", "layer"});
  std::ofstream(run_ / "wrong.pbtxt") << "model { layers: \"four\" }\n";
  expect_refused(run_.kvloom({"train", "--config", "wrong.pbtxt"}), {"wrong.pbtxt:1:", "\"four\""});
  expect_refused(run_.train({"--set", "train.step=3"}), {"train.step=3", "steps"});
  expect_refused(run_.train({"--set", "train.steps=soon"}), {"train.steps=soon"});
  expect_refused(run_.train({"--set", "train.precision=F16"}), {"train.precision=F16"});
  expect_refused(run_.train({"--set", "train"}), {"field.path=value"});
  expect_refused(run_.train({"--set", "model.heads=5"}), {"model."});
  expect_refused(run_.train({"--set", "train.global_batch=3"}), {"global_batch", "micro_batch"});
  expect_refused(run_.train({"--set", "mesh.tensor=2"}), {"mesh"});
}

TEST_F(BadInput, AMistypedNameIsAnsweredWithTheOneThatWasMeant) {
  expect_refused(run_.kvloom({"trian"}), {"there is no verb 'trian'; did you mean 'train'?"});
  expect_refused(run_.kvloom({"serve-it"}), {"there is no verb 'serve-it'; right are"});
  expect_refused(run_.train({"--resum", "auto"}), {"did you mean '--resume'?", "kvloom train --help"});
  expect_refused(run_.kvloom({"eval", "--checkpoint", "out", "--tokns=5"}), {"kvloom eval --help"});
  expect_refused(run_.kvloom({"generate", "--promt", "a"}), {"did you mean '--prompt'?"});
  expect_refused(run_.train({"--set", "train.step=3"}), {"did you mean 'steps'?"});
  expect_refused(run_.train({"--set", "model.kv_mpa=none"}), {"did you mean 'kv_map'?"});
  std::ofstream(run_ / "unknown.pbtxt") << "model {\n  layer: 4\n}\n";
  expect_refused(run_.kvloom({"train", "--config", "unknown.pbtxt"}), {"did you mean 'layers'?"});
}

TEST_F(BadInput, HelpExplainsEveryVerb) {
  const auto printed = [&](const std::vector<std::string>& words) {
    const test::ProcessResult result = run_.kvloom(words);
    EXPECT_EQ(result.status, 0) << result.error;
    EXPECT_EQ(result.error, "");
    return result.output;
  };
  EXPECT_EQ(printed({"help"}), printed({"--help"}));
  for (const char* verb : {"tokenize", "train", "eval", "generate", "convert", "inspect", "kvmap", "plan", "bench"}) {
    EXPECT_EQ(printed({"help", verb}), printed({verb, "--help"})) << verb;
  }
  EXPECT_EQ(printed({"help", "eval", "prepare"}), printed({"eval", "prepare", "--help"}));
  expect_refused(run_.kvloom({"help", "tran"}), {"there is no verb 'tran'; did you mean 'train'?"});
  expect_refused(run_.kvloom({"help", "plan", "x"}), {"'kvloom plan' has no verbs of its own"});
}

TEST_F(BadInput, ShellsCompleteVerbsAndOptions) {
  const auto completed = [&](const std::string& words, int at) {
    test::ProcessOptions options;
    options.folder = run_.path();
    const std::string script =
        fmt::format("source <({} completion bash); COMP_WORDS=({}); COMP_CWORD={}; _kvloom; echo \"${{COMPREPLY[@]}}\"",
                    KVLOOM_BINARY, words, at);
    const test::ProcessResult result = test::run_process({"bash", "-c", script}, options);
    EXPECT_EQ(result.error, "");
    return result.output;
  };
  EXPECT_EQ(completed("kvloom tra", 1), "train\n");
  EXPECT_EQ(completed("kvloom train --resu", 2), "--resume\n");
  EXPECT_EQ(completed("kvloom train --config run", 3), "run.pbtxt\n");
  EXPECT_EQ(completed("kvloom eval prep", 2), "prepare\n");
  EXPECT_THAT(completed("kvloom eval --dump", 2), HasSubstr("--dump-logits --dump-gradients"));
  expect_refused(run_.kvloom({"completion", "fish"}), {"fish"});
}

TEST_F(BadInput, AnImpossibleMapIsNamedWithItsLayer) {
  expect_refused(run_.train({"--set", "model.kv_map=0_9_2_3"}), {"layer 1", "layer 9", "0 to 3"});
  expect_refused(run_.train({"--set", "model.kv_map=0_0"}), {"2 layers", "4"});
  expect_refused(run_.train({"--set", "model.kv_map=0s_0_0_0"}), {"layer 0", "window"});
  expect_refused(run_.kvloom({"kvmap", "--layers", "4", "--map", "sandwich-sideways:2"}), {"sandwich-sideways:2"});
  expect_refused(run_.kvloom({"kvmap", "--layers", "4", "--map", "pizza-top:5"}), {"1 to 4"});
}

TEST_F(BadInput, MissingAndEmptyFilesAreNamed) {
  expect_refused(run_.kvloom({"train", "--config", "none.pbtxt"}), {"none.pbtxt"});
  expect_refused(run_.train({"--set", "data.tokens=none.h5"}), {"none.h5"});
  expect_refused(run_.kvloom({"generate", "--checkpoint", "none", "--prompt", "a"}), {"none"});
  expect_refused(run_.kvloom({"inspect", "none"}), {"none"});
  expect_refused(run_.kvloom({"tokenize", "--input", "none.txt", "--output", "t.h5"}), {"none.txt"});
  std::ofstream(run_ / "empty.txt").flush();
  expect_refused(run_.kvloom({"tokenize", "--input", "empty.txt", "--output", "t.h5"}), {"empty"});
  expect_refused(run_.train({"--set", "data.tokens=empty.txt"}), {"empty.txt"});
  expect_refused(run_.train({"--set", "model.context=100000"}), {"100001"});
}

TEST_F(BadInput, OnTheCommandLineIsNamed) {
  expect_refused(run_.kvloom({"trian"}), {"trian"});
  expect_refused(run_.kvloom({"train", "--confg", "run.pbtxt"}), {"--help"});
  expect_refused(run_.train({"--resume", "maybe"}), {"maybe"});
}

TEST_F(BadInput, AVocabularyOrPromptThatDoesNotFitIsRefused) {
  expect_refused(run_.train({"--set", "model.vocab=100"}), {"model.vocab", "100", "257"});
  train_once();
  expect_refused(run_.kvloom({"generate", "--checkpoint", "out", "--prompt", std::string(64, 'a')}), {"64", "32"});
  expect_refused(run_.kvloom({"generate", "--checkpoint", "out", "--prompt", "a", "--top-p", "2"}), {"2"});
}

TEST_F(BadInput, TokensOfAnotherTokenizerAreRefusedUnlessWanted) {
  train_once();
  {
    TokenFileWriter other(run_ / "other.h5", {.vocab = 257, .tokenizer_kind = "sentencepiece", .tokenizer_model = "m"});
    for (const Part part : {Part::kTraining, Part::kValidation}) {
      other.begin_document(part);
      other.append(part, random_.tokens(500, 257), 500);
    }
    other.finish();
  }
  const std::vector<std::string> eval = {"eval", "--checkpoint", "out", "--data", "other.h5"};
  expect_refused(run_.kvloom(eval), {"'other.h5'", "sentencepiece", "bytes", "--any-tokenizer"});
  std::vector<std::string> all_the_same = eval;
  all_the_same.push_back("--any-tokenizer");
  EXPECT_EQ(run_.kvloom(all_the_same).status, 0);
  expect_refused(run_.kvloom({"convert", "out", "hf", "--to", "hf", "--data", "other.h5"}), {"--any-tokenizer"});
  const auto start = [&](std::vector<std::string> more) {
    more.insert(more.end(), {"--set", "output.directory=more", "--set", "train.steps=1"});
    return run_.train(more);
  };
  const std::vector<std::string> from = {"--set", "train.start_from=out", "--set", "data.tokens=other.h5"};
  expect_refused(start(from), {"'other.h5'", "'out/step-", "data.any_tokenizer"});
  expect_refused(start({"--set", "data.validation_tokens=other.h5"}), {"'other.h5'", "data.any_tokenizer"});
  std::vector<std::string> wanted = from;
  wanted.insert(wanted.end(), {"--set", "data.any_tokenizer=true"});
  EXPECT_EQ(start(wanted).status, 0);
}

TEST_F(BadInput, AnotherTokenizerOfTheSameKindIsCalledSo) {
  const auto tokenize = [&](const std::string& text, const std::string& output) {
    const test::ProcessResult result =
        run_.kvloom({"tokenize", "--input", text, "--tokenizer", "train-sentencepiece:300", "--valid-fraction", "0.1",
                     "--output", output});
    EXPECT_EQ(result.status, 0) << result.error;
  };
  std::ofstream other(run_ / "other.txt");
  for (int line = 0; line < 400; ++line) other << "row " << line * line % 97 << " in another tale\n";
  other.close();
  tokenize("text.txt", "tokens.h5");
  tokenize("other.txt", "other.h5");
  ASSERT_EQ(run_.train({"--set", "train.steps=1", "--set", "model.vocab=300"}).status, 0);
  expect_refused(run_.kvloom({"eval", "--checkpoint", "out", "--data", "other.h5"}),
                 {"'other.h5' holds tokens of another sentencepiece tokenizer than that of 'out'", "--any-tokenizer"});
}

TEST_F(BadInput, WhatRunsOnOneRankIsRefusedOnSeveralOnce) {
  if (!test::has_mpirun()) GTEST_SKIP() << "no mpirun";
  train_once();
  test::ProcessOptions options;
  options.folder = run_.path();
  const auto on = [&](int ranks, std::vector<std::string> words) {
    words.insert(words.begin(), KVLOOM_BINARY);
    return test::run_process(test::mpirun(ranks, words), options);
  };
  const std::vector<std::string> plan = {"plan", "--config", "run.pbtxt"};
  const std::vector<std::string> bench = {"bench",   "train", "--layers",   "2", "--hidden", "32", "--ffn",     "32",
                                          "--heads", "2",     "--kv-heads", "1", "--vocab",  "64", "--context", "16"};
  for (const auto& verb : {plan, bench}) {
    const test::ProcessResult refused = on(2, verb);
    EXPECT_EQ(refused.status, 2) << refused.error;
    EXPECT_EQ(refused.output, "");
    const std::string why = (verb == bench ? "bench train" : verb.front()) +
                            ": runs on one rank, and was started on 2; start it without mpirun\n";
    EXPECT_EQ(test::count_of(refused.error, why), 1) << refused.error;
    EXPECT_EQ(test::count_of(refused.error, "kvloom "), 1) << refused.error;
    EXPECT_EQ(on(1, verb).status, 0);
  }
}

TEST_F(BadInput, AFolderThatTakesNoFilesIsNamedBeforeAnythingIsDone) {
  train_once();
  std::filesystem::create_directory(run_ / "full");
  std::filesystem::permissions(run_ / "full", std::filesystem::perms::owner_read | std::filesystem::perms::owner_exec);
  if (!test::has_plain_rights(run_.path())) GTEST_SKIP() << "setpriv cannot give up root's rights";
  const std::vector<std::vector<std::string>> outputs = {
      {"plan", "--config", "run.pbtxt", "--svg", "full/file"},
      {"tokenize", "--input", "text.txt", "--output", "full/file"},
      {"eval", "--checkpoint", "out", "--data", "tokens.h5", "--dump-logits", "full/file"},
      {"eval", "needle", "text.txt", "full/file", "--tokenizer", "bytes", "--lengths", "400"}};
  for (std::vector<std::string> words : outputs) {
    words.insert(words.begin(), KVLOOM_BINARY);
    expect_refused(test::run_with_plain_rights(words, {.folder = run_.path()}),
                   {"full/file cannot be written: the folder full takes no files: Permission denied"});
  }
}

TEST_F(BadInput, WhatIsNoCheckpointIsCalledWhatItIs) {
  std::filesystem::create_directory(run_ / "hf");
  std::ofstream(run_ / "hf/config.json") << "{}";
  std::filesystem::create_directory(run_ / "nothing");
  const std::vector<std::pair<std::string, std::string>> wrong = {
      {"hf", "'hf' is a model of Hugging Face; make a checkpoint of it first: kvloom convert hf TARGET"},
      {"tokens.h5", "'tokens.h5' is a file; right is a checkpoint, which is a folder"},
      {"nothing", "'nothing' is no checkpoint: it has neither manifest.pb nor folders such as step-00000100"}};
  for (const auto& [path, words] : wrong) {
    expect_refused(run_.train({"--set", "train.start_from=" + path}), {"train.start_from: " + words});
  }
}

// What runs a model takes a folder of Hugging Face as well.
TEST_F(BadInput, WhatIsNoModelIsCalledWhatItIs) {
  std::filesystem::create_directory(run_ / "hf");
  std::ofstream(run_ / "hf/config.json") << "{}";
  std::filesystem::create_directory(run_ / "nothing");
  const std::vector<std::pair<std::string, std::string>> wrong = {
      {"hf", "hf/config.json has no model_type"},
      {"tokens.h5", "'tokens.h5' is no folder; a model is one"},
      {"nothing",
       "'nothing' is no model: it has neither manifest.pb nor config.json nor folders such as step-00000100"}};
  for (const auto& [path, words] : wrong) {
    expect_refused(run_.kvloom({"generate", "--checkpoint", path, "--prompt", "a"}), {words});
    expect_refused(run_.kvloom({"bench", "serve", "--checkpoint", path}), {words});
    expect_refused(run_.kvloom({"eval", "--checkpoint", path, "--data", "tokens.h5"}), {words});
    expect_refused(run_.kvloom({"eval", "needle", "text.txt", "n.jsonl", "--checkpoint", path, "--lengths", "100"}),
                   {words});
  }
}

TEST_F(BadInput, CheckpointsAreNotOverwrittenUnasked) {
  train_once();
  EXPECT_FALSE(std::filesystem::exists(run_ / "out/training.lock")) << "its training is over";
  expect_refused(run_.train(), {"'out'", "--resume auto"});
  EXPECT_FALSE(std::filesystem::exists(run_ / "out/training.lock"));
}

TEST_F(BadInput, AnOutputDirectoryIsNoFileAndARefusedStartLeavesNothing) {
  for (const std::string output : {"text.txt", "text.txt/below"}) {
    expect_refused(run_.train({"--set", "output.directory=" + output}), {"output.directory: '" + output + "' is"});
  }
  train_once();
  expect_refused(
      run_.train({"--set", "output.directory=fresh", "--set", "train.start_from=out", "--set", "model.hidden=64"}),
      {"holds another model"});
  std::filesystem::create_directories(run_ / "mine");
  std::ofstream(run_ / "mine/metrics.jsonl") << "not ours\n";
  expect_refused(run_.train({"--set", "output.directory=mine"}), {"metrics.jsonl"});
  EXPECT_FALSE(std::filesystem::exists(run_ / "mine/training.lock"));
  EXPECT_FALSE(std::filesystem::exists(run_ / "fresh"));
}

TEST_F(BadInput, AnOutputDirectoryThatCannotBeLockedIsRefusedInTime) {
  std::filesystem::create_directories(run_ / "linked");
  std::filesystem::create_symlink("nowhere/at/all", run_ / "linked/training.lock");
  expect_refused(run_.train({"--set", "output.directory=linked"}), {"output.directory", "linked/training.lock"});
  std::filesystem::create_directories(run_ / "folder/training.lock");
  expect_refused(run_.train({"--set", "output.directory=folder"}), {"output.directory", "folder/training.lock"});
  const std::string longest(300, 'x');
  expect_refused(run_.train({"--set", "output.directory=" + longest}), {"output.directory", longest});
}

TEST_F(BadInput, ARefusedStartTakesNoMarkAwayAndAFileThatIsNoneIsRefused) {
  std::filesystem::create_directories(run_ / "mine");
  const auto write = [&](const std::string& name, const std::string& text) {
    std::ofstream(run_ / "mine" / name) << text;
  };
  write("best", "my best poem\n");
  expect_refused(run_.train({"--set", "output.directory=mine"}), {"mine/best", "must hold the name"});
  EXPECT_EQ(read_bytes(run_ / "mine/best"), "my best poem\n");
  // A mark whose checkpoints are gone: the next start takes it away, unless something else refuses that.
  write("best", "step-00000004\n");
  write("metrics.jsonl", "not ours\n");
  expect_refused(run_.train({"--set", "output.directory=mine"}), {"metrics.jsonl"});
  EXPECT_EQ(read_bytes(run_ / "mine/best"), "step-00000004\n");
  std::filesystem::remove(run_ / "mine/metrics.jsonl");
  EXPECT_EQ(run_.train({"--set", "output.directory=mine", "--set", "train.steps=1"}).status, 0);
  EXPECT_EQ(read_bytes(run_ / "mine/best"), "step-00000001\n") << "the mark of this run's own";
}

TEST_F(BadInput, ADamagedCheckpointIsRefusedByItsFile) {
  const std::string folder = train_once();
  for (const char* name : {"manifest.pb", "shard-0-0.h5"}) {
    const std::filesystem::path file = run_ / folder / name;
    ASSERT_TRUE(std::filesystem::exists(file)) << file;
    const std::string whole = read_bytes(file);
    for (int round = 0; round < 3; ++round) {
      flip_bit(file);
      expect_refused(run_.kvloom({"eval", "--checkpoint", folder, "--data", "tokens.h5"}), {name});
      std::ofstream(file, std::ios::binary) << whole.substr(0, whole.size() / 2);
      expect_refused(run_.kvloom({"generate", "--checkpoint", folder, "--prompt", "a"}), {name});
      std::ofstream(file, std::ios::binary) << whole;
    }
  }
  EXPECT_EQ(run_.kvloom({"eval", "--checkpoint", folder, "--data", "tokens.h5"}).status, 0);
}

TEST_F(BadInput, ADamagedTokenFileIsRefusedOrHarmless) {
  train_once();
  const test::ProcessResult sound = run_.kvloom({"eval", "--checkpoint", "out", "--data", "tokens.h5", "--json"});
  const std::string whole = read_bytes(run_ / "tokens.h5");
  for (int round = 0; round < 10; ++round) {
    std::ofstream(run_ / "damaged.h5", std::ios::binary) << whole;
    flip_bit(run_ / "damaged.h5");
    const test::ProcessResult result = run_.kvloom({"eval", "--checkpoint", "out", "--data", "damaged.h5", "--json"});
    if (result.status == 0) {
      EXPECT_EQ(result.output, sound.output);
    } else {
      expect_refused(result, {"damaged.h5"});
    }
  }
  std::ofstream(run_ / "damaged.h5", std::ios::binary) << whole.substr(0, whole.size() - 100);
  expect_refused(run_.train({"--set", "data.tokens=damaged.h5"}), {"damaged.h5"});
}

// A model of so long a context, with a tokenizer, that its cache takes a gigabyte.
void make_long_model(const test::TinyRun& run) {
  const std::filesystem::path fixtures = std::filesystem::path(KVLOOM_SOURCE_DIR) / "tests/fixtures";
  std::filesystem::create_directory(run / "hf");
  for (const char* file : {"evaluation/model/config.json", "evaluation/model/model.safetensors",
                           "tokenizers/gpt2/tokenizer.json", "tokenizers/gpt2/tokenizer_config.json"}) {
    std::filesystem::copy_file(fixtures / file, run / "hf" / std::filesystem::path(file).filename());
  }
  auto config = nlohmann::json::parse(read_bytes(run / "hf/config.json"));
  config["max_position_embeddings"] = 1 << 23;
  std::ofstream(run / "hf/config.json") << config;
  const test::ProcessResult converted = run.kvloom({"convert", "hf", "long"});
  EXPECT_EQ(converted.status, 0) << converted.error;
}

TEST_F(BadInput, MemoryThatRunsOutIsSaidWithTheVerbsOwnSettings) {
  if (test::kSanitized) GTEST_SKIP() << "a sanitizer takes more addresses than there may be";
  make_long_model(run_);
  const auto in_a_gigabyte = [&](std::vector<std::string> words) {
    const std::vector<std::string> alone = {"env", "OMP_NUM_THREADS=1", KVLOOM_BINARY};
    words.insert(words.begin(), alone.begin(), alone.end());
    return test::run_process(words, {.folder = run_.path(), .address_space = 1000000000});
  };
  const std::string lower = "lower what is worked on at once: ";
  const auto refused = [&](const std::vector<std::string>& words, const std::string& what) {
    const test::ProcessResult result = in_a_gigabyte(words);
    expect_refused(result, {"cpu: out of memory asking for ", lower + what}, 1);
    EXPECT_EQ(result.error.find("micro_batch") != std::string::npos, words.front() == "train") << result.error;
  };
  refused({"train", "--config", "run.pbtxt", "--set", "model.hidden=65536", "--set", "model.ffn=65536"},
          "train.micro_batch or model.context");
  refused({"generate", "--checkpoint", "long", "--prompt", "a", "--max-new-tokens", "8000000"},
          "the prompt or --max-new-tokens");
  refused({"eval", "--checkpoint", "long", "--data", "tokens.h5", "--any-tokenizer"}, "--sequential takes less");
}

TEST_F(BadInput, AFullDiskWhileSavingLeavesTheLastGoodCheckpoint) {
  train_once();
  test::ProcessOptions full;
  full.largest_file = std::filesystem::file_size(run_ / "out/step-00000002/shard-0-0.h5") / 2;
  const test::ProcessResult result = run_.train({"--resume", "auto"}, full);
  EXPECT_EQ(result.status, 1) << result.error;
  EXPECT_THAT(result.error, HasSubstr("shard-0-0.h5"));
  EXPECT_THAT(result.error, HasSubstr("kvloom train: "));
  EXPECT_EQ(run_.kvloom({"inspect", "--verify", "out/step-00000002"}).status, 0);
  for (const auto& entry : std::filesystem::directory_iterator(run_ / "out")) {
    EXPECT_FALSE(entry.path().filename().string().starts_with(".")) << entry.path();
  }
  EXPECT_EQ(run_.train({"--resume", "auto"}).status, 0);
}

}  // namespace
}  // namespace kvloom
