// `kvloom tokenize` as a user runs it: the file depends on the input alone, text comes back, mistakes leave nothing.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <hdf5.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <set>
#include <thread>

#include "data/token_file.h"
#include "infer/tokenizer.h"
#include "tests/support/random.h"
#include "tests/support/verb_test.h"

namespace kvloom {
namespace {

using test::Words;
using ::testing::HasSubstr;
using Texts = std::vector<std::string>;

std::vector<std::int32_t> tokens_of(const TokenFile& file, Part part) {
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(file.count(part)));
  file.read(part, 0, tokens);
  return tokens;
}

std::unique_ptr<Tokenizer> tokenizer_of(const TokenFile& file) {
  return make_tokenizer(file.tokenizer_kind(), file.tokenizer_model(), "token file");
}

// The texts that separators end; every one must be ended.
Texts documents_of(const TokenFile& file, Part part) {
  const auto tokenizer = tokenizer_of(file);
  const auto tokens = tokens_of(file, part);
  Texts documents;
  auto begin = tokens.begin();
  while (begin != tokens.end()) {
    const auto end = std::find(begin, tokens.end(), tokenizer->separator());
    EXPECT_NE(end, tokens.end()) << "the last document has no separator";
    if (end == tokens.end()) break;
    documents.push_back(tokenizer->decode({begin, end}));
    begin = end + 1;
  }
  return documents;
}

std::vector<std::uint64_t> starts_of_documents(const std::filesystem::path& path, const char* name) {
  const hid_t file = H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT);
  const hid_t dataset = H5Dopen2(file, name, H5P_DEFAULT);
  const hid_t space = H5Dget_space(dataset);
  std::vector<std::uint64_t> starts(static_cast<std::size_t>(H5Sget_simple_extent_npoints(space)));
  EXPECT_GE(H5Dread(dataset, H5T_NATIVE_UINT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, starts.data()), 0);
  H5Sclose(space);
  H5Dclose(dataset);
  H5Fclose(file);
  return starts;
}

class TokenizeVerb : public test::VerbTest {
 protected:
  TokenizeVerb() : VerbTest("tokenize") {}

  // Paths that begin with '@' are in the test's folder; what it prints goes elsewhere.
  test::ProcessResult run(const Words& words) override {
    Words all = words;
    for (std::string& word : all) {
      if (word.starts_with('@')) word = (folder() / word.substr(1)).string();
    }
    return run_in(elsewhere_.path(), all);
  }

  // The token file.
  TokenFile tokenized(Words words, const std::string& output = "tokens.h5") {
    words.insert(words.end(), {"--output", "@" + output});
    const test::ProcessResult result = run(words);
    EXPECT_EQ(result.status, 0) << result.error;
    EXPECT_EQ(result.error, "");
    return TokenFile(folder() / output);
  }

  void expect_refused(const Words& words, const std::string& reason) {
    const std::set<std::string> before = listing();
    VerbTest::expect_refused(words, reason);
    EXPECT_EQ(listing(), before) << reason;
  }

  std::set<std::string> listing() const {
    std::set<std::string> all;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder().path())) {
      all.insert(entry.path().string());
    }
    return all;
  }

  std::string write(const std::string& name, const std::string& text) {
    folder().write(name, text);
    return text;
  }

  // Lines of words, known and new, some characters of several bytes.
  std::string random_text(std::size_t bytes) {
    const Texts words = {"map", "source", "layer", "reads", "above", "  ", "\t", "日本", "é", "🙂", "0_2_2", "\n"};
    std::string text;
    while (text.size() < bytes) {
      text += words[static_cast<std::size_t>(random_.integer(0, static_cast<std::int64_t>(words.size()) - 1))];
      for (std::int64_t letters = random_.integer(0, 6); letters > 0; --letters) {
        text += static_cast<char>('a' + random_.integer(0, 9));
      }
      text += random_.integer(0, 9) == 0 ? "\n" : " ";
    }
    return text;
  }

  // One file in the folder "in" for each size, named in order.
  Texts write_files(const std::vector<std::size_t>& sizes) {
    Texts texts;
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      texts.push_back(write("in/" + std::to_string(1000 + i) + ".txt", random_text(sizes[i])));
    }
    return texts;
  }

  test::Random random_;
  TemporaryFolder elsewhere_;
};

TEST_F(TokenizeVerb, ThreadsAndTimeDoNotChangeAByteOfTheFile) {
  write_files({150000, 10, 5000, 80000, 1, 70000});
  const Words kinds = {"bytes", "train-sentencepiece:400"};
  const auto write_all = [&](const std::string& threads) {
    for (std::size_t i = 0; i < kinds.size(); ++i) {
      tokenized({"--input", "@in", "--valid-fraction", "0.2", "--tokenizer", kinds[i], "--threads", threads},
                std::to_string(i) + "by" + threads + ".h5");
    }
  };
  write_all("1");
  std::this_thread::sleep_for(std::chrono::milliseconds(1100));  // HDF5 counts time in seconds
  write_all("2");
  write_all("7");
  for (std::size_t i = 0; i < kinds.size(); ++i) {
    const std::string one = read_bytes(folder() / (std::to_string(i) + "by1.h5"));
    EXPECT_EQ(one, read_bytes(folder() / (std::to_string(i) + "by2.h5"))) << kinds[i];
    EXPECT_EQ(one, read_bytes(folder() / (std::to_string(i) + "by7.h5"))) << kinds[i];
  }
}

TEST_F(TokenizeVerb, EveryDocumentComesBackByteForByteBetweenSeparators) {
  Texts texts = write_files({200000, 3, 90000, 1, 400});
  texts.push_back(write("in/2000.txt", std::string(150000, 'x') + "🙂"));  // a line longer than a piece
  texts.push_back(write("in/3000.txt", "no newline at its end"));
  write("in/4000.txt", "");  // leaves no document
  for (const std::string tokenizer : {"bytes", "train-sentencepiece:400"}) {
    const TokenFile file = tokenized({"--input", "@in", "--valid-fraction", "0", "--tokenizer", tokenizer});
    EXPECT_EQ(documents_of(file, Part::kTraining), texts) << tokenizer;
    EXPECT_EQ(file.count(Part::kValidation), 0);
    std::vector<std::uint64_t> starts = {0};
    const auto tokens = tokens_of(file, Part::kTraining);
    const std::int32_t separator = tokenizer_of(file)->separator();
    for (std::size_t i = 0; i + 1 < tokens.size(); ++i) {
      if (tokens[i] == separator) starts.push_back(i + 1);
    }
    EXPECT_EQ(starts_of_documents(folder() / "tokens.h5", "documents"), starts);
  }
}

TEST_F(TokenizeVerb, BytesKeepWhatIsNoText) {
  std::string bytes = "no mark of a compressed file";
  for (int i = 0; i < 200000; ++i) bytes += static_cast<char>(random_.integer(0, 255));
  write("noise.bin", bytes);
  const TokenFile file = tokenized({"--input", "@noise.bin", "--valid-fraction", "0.1"});
  const Texts training = documents_of(file, Part::kTraining);
  const Texts validation = documents_of(file, Part::kValidation);
  ASSERT_EQ(training.size(), 1);
  ASSERT_EQ(validation.size(), 1);
  EXPECT_TRUE(training[0] + validation[0] == bytes);
}

TEST_F(TokenizeVerb, FilesAndFoldersAreTakenInTheirOrderAndGlobsPickInFolders) {
  write("single.md", "single");
  write("in/b.txt", "b");
  write("in/a.h", "a");
  write("in/deep/er/c.h", "c");
  write("in/deep/d.cc", "d");
  const auto taken = [this](Words words) {
    words.insert(words.end(), {"--valid-fraction", "0"});
    return documents_of(tokenized(words), Part::kTraining);
  };
  EXPECT_EQ(taken({"--input", "@single.md"}), Texts{"single"});
  EXPECT_EQ(taken({"--input", "@in"}), (Texts{"a", "b", "d", "c"}));
  EXPECT_EQ(taken({"--input", "@single.md", "@in/deep"}), (Texts{"single", "d", "c"}));
  EXPECT_EQ(taken({"--input", "@in/deep", "--input", "@single.md"}), (Texts{"d", "c", "single"}));
  EXPECT_EQ(taken({"--input", "@in", "--glob", "*.h"}), (Texts{"a", "c"}));
  EXPECT_EQ(taken({"--input", "@in", "--glob", "*.h", "*.cc"}), (Texts{"a", "d", "c"}));
  EXPECT_EQ(taken({"--input", "@in", "@single.md", "--glob", "[bc].*"}), (Texts{"b", "c", "single"}));
}

TEST_F(TokenizeVerb, WhatItWroteIntoTheInputFolderIsNoInputTheNextTime) {
  const Texts texts = write_files({20000, 30000});
  const Words words = {"--input",      "@in",        "--valid-fraction", "0", "--tokenizer", "train-sentencepiece:400",
                       "--save-model", "@in/m.model"};
  EXPECT_EQ(documents_of(tokenized(words, "in/tokens.h5"), Part::kTraining), texts);
  const std::string first = read_bytes(folder() / "in/tokens.h5");
  for (const char* part : {"training", "validation", "partial"}) {  // as a killed run leaves them
    std::ofstream(folder() / fmt::format("in/.tokens.h5.{}", part)) << "left";
  }
  EXPECT_EQ(documents_of(tokenized(words, "in/tokens.h5"), Part::kTraining), texts);
  EXPECT_EQ(read_bytes(folder() / "in/tokens.h5"), first);
  expect_refused({"--input", "@in/tokens.h5", "--output", "@in/tokens.h5"}, "also an output");
}

TEST_F(TokenizeVerb, AFileReachedMoreThanOnceIsOneDocument) {
  write("in/a.txt", "first");
  write("in/b.txt", "second");
  std::filesystem::create_symlink("a.txt", folder() / "in/c.txt");
  std::filesystem::create_hard_link(folder() / "in/b.txt", folder() / "in/d.txt");
  std::filesystem::create_symlink("nowhere", folder() / "in/e.txt");
  const Words words = {"--input", "@in/b.txt", "@in", "@in/../in/b.txt", "--valid-fraction", "0"};
  EXPECT_EQ(documents_of(tokenized(words), Part::kTraining), (Texts{"second", "first"}));
  Words again = words;
  again.insert(again.end(), {"--output", "@again.h5"});
  EXPECT_THAT(run(again).output, HasSubstr("4 files were reached more than once"));
  again.push_back("--json");
  const nlohmann::json said = nlohmann::json::parse(run(again).output);
  EXPECT_EQ(said["files"], 2);
  EXPECT_EQ(said["repeated_files"], 4);
}

TEST_F(TokenizeVerb, AnOutputIsNoFolderNoOtherOutputAndNothingThatIsRead) {
  write("in/a.txt", random_text(20000));
  const Words trains = {"--input", "@in", "--tokenizer", "train-sentencepiece:400"};
  const auto refused = [&](Words words, const Words& more, const std::string& reason) {
    words.insert(words.end(), more.begin(), more.end());
    expect_refused(words, reason);
  };
  refused(trains, {"--output", "@in"}, "is a folder");
  refused(trains, {"--output", "@t.h5", "--save-model", "@in"}, "is a folder");
  ASSERT_EQ(mkfifo((folder() / "pipe").c_str(), 0600), 0);
  refused(trains, {"--output", "@pipe"}, "pipe cannot be written: it is not a regular file");
  refused(trains, {"--output", "@t.h5", "--save-model", "@t.h5"}, "also --output");
  refused(trains, {"--output", "@t.h5", "--save-model", "@in/../t.h5"}, "also --output");
  refused(trains, {"--output", "t.h5", "--save-model", "./t.h5"}, "also --output");
  const Words single = {"--input", "@in/a.txt", "--tokenizer", "train-sentencepiece:400"};
  refused(single, {"--output", "@in/../in/a.txt"}, "also an output");
  refused(single, {"--output", "@t.h5", "--save-model", "@in/a.txt"}, "also an output");
  tokenized({"--input", "@in", "--tokenizer", "train-sentencepiece:400", "--save-model", "@m.model"});
  const std::string model = (folder() / "m.model").string();
  refused({"--input", "@in", "--tokenizer", "sentencepiece:" + model}, {"--output", "@in/../m.model"}, "tokenizer's");
}

TEST_F(TokenizeVerb, AFolderThatCannotBeReadIsRefusedByName) {
  write("in/a.txt", "first");
  write("in/secret/b.txt", "second");
  std::filesystem::permissions(folder() / "in/secret", std::filesystem::perms::none);
  test::ProcessOptions options;
  options.folder = elsewhere_.path();
  const std::string in = (folder() / "in").string();
  Words command = {KVLOOM_BINARY, "tokenize", "--input", in, "--output", (folder() / "t.h5").string()};
  // Root reads everything unless it gives that up.
  Words plain = {"setpriv", "--bounding-set=-dac_override,-dac_read_search",
                 "--inh-caps=-dac_override,-dac_read_search"};
  if (::geteuid() == 0) command.insert(command.begin(), plain.begin(), plain.end());
  const test::ProcessResult result = test::run_process(command, options);
  std::filesystem::permissions(folder() / "in/secret", std::filesystem::perms::owner_all);
  if (result.status == 127) GTEST_SKIP() << "setpriv cannot give up root's rights: " << result.error;
  EXPECT_EQ(result.status, 2) << result.error;
  EXPECT_EQ(result.error_lines(), 1) << result.error;
  EXPECT_THAT(result.error, HasSubstr(in + "/secret' cannot be read: Permission denied"));
  EXPECT_FALSE(std::filesystem::exists(folder() / "t.h5"));
}

TEST_F(TokenizeVerb, ASavedModelGivesTheSameTokens) {
  write_files({60000});
  const TokenFile trained =
      tokenized({"--input", "@in", "--tokenizer", "train-sentencepiece:400", "--save-model", "@m.model"});
  EXPECT_EQ(read_bytes(folder() / "m.model"), trained.tokenizer_model());
  const TokenFile loaded =
      tokenized({"--input", "@in", "--tokenizer", "sentencepiece:" + (folder() / "m.model").string()}, "again.h5");
  EXPECT_EQ(loaded.identity(), trained.identity());
}

TEST_F(TokenizeVerb, ValidationIsWholeDocumentsOfTheAskedShareChosenByTheSeed) {
  std::vector<std::size_t> sizes;
  for (int i = 0; i < 150; ++i) sizes.push_back(static_cast<std::size_t>(random_.integer(1, 2000)));
  Texts texts = write_files(sizes);
  std::size_t bytes = 0;
  for (const std::string& text : texts) bytes += text.size();
  std::ranges::sort(texts);
  std::map<std::string, Texts> held_out;
  for (const std::string seed : {"1", "2"}) {
    const TokenFile file = tokenized({"--input", "@in", "--valid-fraction", "0.2", "--seed", seed});
    Texts all = documents_of(file, Part::kTraining);
    held_out[seed] = documents_of(file, Part::kValidation);
    all.insert(all.end(), held_out[seed].begin(), held_out[seed].end());
    std::ranges::sort(all);
    EXPECT_EQ(all, texts);
    const double share = static_cast<double>(file.text_bytes(Part::kValidation)) / static_cast<double>(bytes);
    EXPECT_LE(share, 0.2);
    EXPECT_GE(share, 0.15);
    EXPECT_EQ(file.text_bytes(Part::kTraining) + file.text_bytes(Part::kValidation), bytes);
    EXPECT_EQ(static_cast<std::size_t>(file.documents(Part::kValidation)), held_out[seed].size());
  }
  EXPECT_NE(held_out["1"], held_out["2"]);
  EXPECT_EQ(documents_of(tokenized({"--input", "@in", "--valid-fraction", "0.2"}), Part::kValidation), held_out["1"])
      << "the seed is 1 unless told";
}

TEST_F(TokenizeVerb, ASingleDocumentHoldsOutItsTailFromALine) {
  const std::string text = write("book.txt", random_text(40000));
  for (const double fraction : {0.02, 0.1, 0.5}) {
    const TokenFile file = tokenized({"--input", "@book.txt", "--valid-fraction", std::to_string(fraction)});
    const Texts training = documents_of(file, Part::kTraining);
    const Texts validation = documents_of(file, Part::kValidation);
    ASSERT_EQ(training.size(), 1);
    ASSERT_EQ(validation.size(), 1);
    EXPECT_EQ(training[0] + validation[0], text);
    EXPECT_EQ(training[0].back(), '\n');
    EXPECT_EQ(nlohmann::json::parse(file.provenance())["validation_bytes"], validation[0].size());
    EXPECT_NEAR(static_cast<double>(validation[0].size()), fraction * static_cast<double>(text.size()), 400);
  }
}

TEST_F(TokenizeVerb, JsonSaysWhatIsInTheFile) {
  write_files({20000, 3000, 4000});
  const test::ProcessResult result =
      run({"--input", "@in", "--valid-fraction", "0.3", "--json", "--output", "@tokens.h5"});
  ASSERT_EQ(result.status, 0) << result.error;
  const nlohmann::json said = nlohmann::json::parse(result.output);
  const TokenFile file(folder() / "tokens.h5");
  EXPECT_EQ(said["files"], 3);
  EXPECT_EQ(said["vocab"], 257);
  EXPECT_EQ(said["bytes"], file.text_bytes(Part::kTraining) + file.text_bytes(Part::kValidation));
  EXPECT_EQ(said["training_tokens"], file.count(Part::kTraining));
  EXPECT_EQ(said["validation_tokens"], file.count(Part::kValidation));
}

TEST_F(TokenizeVerb, MistakesAreAnsweredWithOneLineStatus2AndNoFile) {
  write("in/a.txt", "some text\n");
  write("empty/a.txt", "");
  write("no.model", "no model");
  std::filesystem::create_directory(folder() / "bare");
  const auto refused = [this](Words words, const std::string& reason) {
    words.insert(words.end(), {"--output", "@tokens.h5"});
    expect_refused(words, reason);
  };
  refused({"--input", "@none.txt"}, "none.txt");
  refused({"--input", "@in", "@none"}, "none");
  refused({"--input", "@in", "--glob", "*.h"}, "--glob");
  refused({"--input", "@bare"}, "no files");
  refused({"--input", "@empty"}, "empty");
  refused({"--input", "@in", "--valid-fraction", "-0.1"}, "--valid-fraction");
  refused({"--input", "@in", "--valid-fraction", "0.6"}, "0 to 0.5");
  refused({"--input", "@in", "--valid-fraction", "nan"}, "--valid-fraction");
  refused({"--input", "@in", "--valid-fraction", "half"}, "half");
  refused({"--input", "@in", "--threads", "-1"}, "--threads");
  refused({"--input", "@in", "--threads", "100000"}, "0 to 1024");
  refused({"--input", "@in", "--seed", "-1"}, "--seed");
  for (const std::string vocab : {"0", "1", "100", "60000", "9999999", "12x", ""}) {
    refused({"--input", "@in", "--save-model", "@m.model", "--tokenizer", "train-sentencepiece:" + vocab}, vocab);
  }
  refused({"--input", "@in", "--tokenizer", "words"}, "train-sentencepiece:VOCAB");
  refused({"--input", "@in", "--tokenizer", "sentencepiece:" + (folder() / "no.model").string()}, "no.model");
  refused({"--input", "@in", "--tokenizer", "sentencepiece:" + (folder() / "none.model").string()}, "none.model");
  refused({"--input", "@in", "--save-model", "@m.model"}, "--save-model");
  expect_refused({"--input", "@in"}, "--output");
  expect_refused({"--output", "@tokens.h5"}, "--input");
  expect_refused({"--input", "@in", "--output", "@none/tokens.h5"}, "there is no folder");
}

TEST_F(TokenizeVerb, AFullDiskLeavesNothing) {
  write_files({300000});
  const std::set<std::string> before = listing();
  test::ProcessOptions full;
  full.folder = elsewhere_.path();
  full.largest_file = 100000;
  const test::ProcessResult result = test::run_process(
      {KVLOOM_BINARY, "tokenize", "--input", (folder() / "in").string(), "--output", (folder() / "t.h5").string()},
      full);
  EXPECT_EQ(result.status, 1) << result.error;
  EXPECT_EQ(result.error_lines(), 1) << result.error;
  EXPECT_EQ(listing(), before);
}

}  // namespace
}  // namespace kvloom
