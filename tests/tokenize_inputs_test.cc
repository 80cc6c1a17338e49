// What `kvloom tokenize` reads: compressed files, JSON lines, UTF-16, folders as people have them; and what it refuses.
#include <bzlib.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <lzma.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <thread>

#include "data/token_file.h"
#include "infer/tokenizer.h"
#include "tests/support/random.h"
#include "tests/support/tokenizer_fixture.h"
#include "tests/support/verb_test.h"

namespace kvloom {
namespace {

using test::Words;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Texts = std::vector<std::string>;

std::string gzipped(const std::string& text) {
  std::string out(text.size() + 1000, '\0');
  z_stream stream{};
  deflateInit2(&stream, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<unsigned>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<unsigned>(out.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

std::string zstd_compressed(const std::string& text) {
  std::string out(ZSTD_compressBound(text.size()), '\0');
  out.resize(ZSTD_compress(out.data(), out.size(), text.data(), text.size(), 3));
  return out;
}

std::string xz_compressed(const std::string& text) {
  std::string out(lzma_stream_buffer_bound(text.size()), '\0');
  std::size_t size = 0;
  EXPECT_EQ(lzma_easy_buffer_encode(3, LZMA_CHECK_CRC64, nullptr, reinterpret_cast<const std::uint8_t*>(text.data()),
                                    text.size(), reinterpret_cast<std::uint8_t*>(out.data()), &size, out.size()),
            LZMA_OK);
  out.resize(size);
  return out;
}

std::string bzip2_compressed(const std::string& text) {
  std::string out(text.size() + text.size() / 100 + 600, '\0');
  auto size = static_cast<unsigned>(out.size());
  EXPECT_EQ(BZ2_bzBuffToBuffCompress(out.data(), &size, const_cast<char*>(text.data()),
                                     static_cast<unsigned>(text.size()), 9, 0, 0),
            BZ_OK);
  out.resize(size);
  return out;
}

std::string utf16(const std::u16string& text, bool little) {
  std::string out;
  for (const char16_t unit : u'\ufeff' + text) {
    const std::array<char, 2> bytes = {static_cast<char>(unit >> 8), static_cast<char>(unit & 0xff)};
    out += little ? bytes[1] : bytes[0];
    out += little ? bytes[0] : bytes[1];
  }
  return out;
}

class TokenizeInputs : public test::VerbTest {
 protected:
  TokenizeInputs() : VerbTest("tokenize") {}

  // The documents of the training part, and what the summary says.
  Texts documents(Words words) {
    if (std::ranges::find(words, "--valid-fraction") == words.end())
      words.insert(words.end(), {"--valid-fraction", "0"});
    words.insert(words.end(), {"--output", "t.h5"});
    said_ = json(words);
    return documents_of(Part::kTraining);
  }

  Texts documents_of(Part part) const {
    const TokenFile file(folder() / "t.h5");
    std::vector<std::int32_t> tokens(static_cast<std::size_t>(file.count(part)));
    file.read(part, 0, tokens);
    const auto tokenizer = make_tokenizer(file.tokenizer_kind(), file.tokenizer_model(), "t.h5");
    Texts texts;
    for (auto begin = tokens.begin(); begin != tokens.end();) {
      const auto end = std::find(begin, tokens.end(), tokenizer->separator());
      texts.push_back(tokenizer->decode({begin, end}));
      begin = end == tokens.end() ? end : end + 1;
    }
    return texts;
  }

  void refused(Words words, const std::string& reason) {
    words.insert(words.end(), {"--output", "refused.h5"});
    expect_refused(words, reason);
    EXPECT_FALSE(std::filesystem::exists(folder() / "refused.h5"));
  }

  std::string noise(std::size_t lines) {
    std::string text;
    for (std::size_t i = 0; i < lines; ++i) text += fmt::format("line {} of {}\n", i, random_.integer(0, 1 << 30));
    return text;
  }

  test::Random random_;
  nlohmann::json said_;
};

TEST_F(TokenizeInputs, CompressedFilesAreTheirTextWhateverTheirName) {
  const std::string first = noise(30000);
  const std::string second = noise(3);
  for (const auto& compress : {gzipped, zstd_compressed, xz_compressed, bzip2_compressed}) {
    folder().write("a.txt", compress(first) + compress(second));  // as cat joins them
    EXPECT_EQ(documents({"--input", "a.txt"}), Texts{first + second});
    EXPECT_EQ(said_["bytes"], first.size() + second.size());
    folder().write("a.txt", compress(""));
    refused({"--input", "a.txt"}, "all of them empty");
  }
  folder().write("plain.txt", first);
  folder().write("a.gz", gzipped(first));
  const std::string tokenizer = "hf:" + (test::tokenizer_fixtures() / "gpt2").string();
  documents({"--input", "plain.txt", "--tokenizer", tokenizer, "--valid-fraction", "0.1"});
  const std::string plain = TokenFile(folder() / "t.h5").identity();
  documents({"--input", "a.gz", "--tokenizer", tokenizer, "--valid-fraction", "0.1"});
  EXPECT_EQ(TokenFile(folder() / "t.h5").identity(), plain);
}

TEST_F(TokenizeInputs, DamagedAndShortenedCompressedFilesAreRefusedByName) {
  const std::string text = noise(20000);
  for (const auto& compress : {gzipped, zstd_compressed, xz_compressed, bzip2_compressed}) {
    const std::string whole = compress(text);
    folder().write("a.txt", whole.substr(0, whole.size() - 20));
    refused({"--input", "a.txt"}, "'a.txt': ends too early");
    folder().write("a.txt", whole.substr(0, whole.size() / 2) + "damage" + whole.substr(whole.size() / 2 + 6));
    refused({"--input", "a.txt"}, "'a.txt'");
  }
}

TEST_F(TokenizeInputs, EachLineOfJsonIsADocument) {
  const std::string lines =
      "{\"id\": 1, \"text\": \"first \\u00e9\\n\", \"meta\": {\"text\": \"inner\"}}\r\n"
      "\n"
      "  {\"text\": \"second\"}  \n"
      "{\"text\": \"\"}\n"
      "{\"text\": \"\\ud83d\\ude42 \\ud83d x\", \"n\": [1, {\"text\": 2}]}";
  const Texts wanted = {"first \xc3\xa9\n", "second", "\xf0\x9f\x99\x82 \xef\xbf\xbd x"};
  folder().write("a.jsonl", lines);
  EXPECT_EQ(documents({"--input", "a.jsonl"}), wanted);
  EXPECT_EQ(said_["documents"], 3);
  EXPECT_EQ(said_["empty_documents"], 1);
  EXPECT_EQ(said_["bytes"], 9 + 6 + 10);
  folder().write("b.ndjson.gz", gzipped(lines));
  EXPECT_EQ(documents({"--input", "b.ndjson.gz"}), wanted);
  folder().write("c.txt", lines);
  EXPECT_EQ(documents({"--input", "c.txt", "--format", "jsonl"}), wanted);
  EXPECT_EQ(documents({"--input", "c.txt"}), Texts{lines});
  EXPECT_EQ(documents({"--input", "a.jsonl", "--format", "text"}), Texts{lines});
  folder().write("d.jsonl", "{\"body\": \"x\", \"text\": 5}\n");
  EXPECT_EQ(documents({"--input", "d.jsonl", "--text-key", "body"}), Texts{"x"});
}

TEST_F(TokenizeInputs, WhatIsWrongWithALineIsSaidWithItsNumber) {
  const auto wrong = [&](const std::string& line, const std::string& reason) {
    folder().write("a.jsonl", "{\"text\": \"right\"}\n\n" + line + "\n{\"text\": \"right\"}\n");
    refused({"--input", "a.jsonl"}, "'a.jsonl', line 3: " + reason);
    refused({"--input", "a.jsonl", "--tokenizer", "train-sentencepiece:300"}, "'a.jsonl', line 3: " + reason);
  };
  wrong("{\"text\": \"unfinished", "is no JSON");
  wrong("plain words", "is no JSON");
  wrong("{\"text\": \"a\"} {\"text\": \"b\"}", "is no JSON");
  wrong("[\"text\", \"a\"]", "is no JSON object");
  wrong("{\"content\": \"a\", \"id\": 3}", "has no 'text'; it has content, id; name the text's key with --text-key");
  wrong("{\"text\": null}", "'text' is null; right is a string");
  wrong("{\"text\": {\"text\": \"a\"}}", "'text' is an object");
  wrong("{\"text\": [\"a\"]}", "'text' is a list");
}

TEST_F(TokenizeInputs, LinesOfJsonAreHeldOutByShareAndSeed) {
  std::string lines;
  for (int i = 0; i < 400; ++i) lines += fmt::format("{{\"text\": \"document {}\"}}\n", i);
  folder().write("a.jsonl", lines);
  Texts training = documents({"--input", "a.jsonl", "--valid-fraction", "0.05"});
  const Texts first = documents_of(Part::kValidation);
  EXPECT_EQ(first.size(), 20);
  training.insert(training.end(), first.begin(), first.end());
  std::ranges::sort(training);
  EXPECT_EQ(training.size(), 400);
  EXPECT_EQ(std::ranges::unique(training).begin(), training.end());
  documents({"--input", "a.jsonl", "--valid-fraction", "0.05", "--threads", "7"});
  EXPECT_EQ(documents_of(Part::kValidation), first);
  documents({"--input", "a.jsonl", "--valid-fraction", "0.05", "--seed", "2"});
  EXPECT_NE(documents_of(Part::kValidation), first);
  folder().write("b.jsonl", "{\"text\": \"a\"}\n{\"text\": \"b\"}\n");
  documents({"--input", "b.jsonl", "--valid-fraction", "0.01"});
  EXPECT_EQ(documents_of(Part::kValidation).size(), 1) << "one of a few";
}

TEST_F(TokenizeInputs, Utf16WithAMarkIsConverted) {
  const std::u16string text = u"h\u00e9llo \u65e5\u672c \U0001F642\n";
  const Texts wanted = {"h\xc3\xa9llo \xe6\x97\xa5\xe6\x9c\xac \xf0\x9f\x99\x82\n"};
  for (const bool little : {true, false}) {
    folder().write("a.txt", utf16(text, little));
    EXPECT_EQ(documents({"--input", "a.txt"}), wanted);
    folder().write("a.txt", gzipped(utf16(text, little)));
    EXPECT_EQ(documents({"--input", "a.txt"}), wanted);
  }
  std::u16string broken = u"a";
  broken += char16_t{0xd800};
  broken += u'b';
  broken += char16_t{0xdc00};
  broken += char16_t{0xd83d};
  folder().write("a.txt", utf16(broken, true) + "x");
  EXPECT_EQ(documents({"--input", "a.txt"}), Texts{"a\xef\xbf\xbd"
                                                   "b\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"});
  std::u16string large;
  for (int i = 0; i < 100000; ++i) large += i % 100 == 0 ? u"\U0001F642\n" : u"\u65e5";
  folder().write("a.txt", utf16(large, true));
  const std::string decoded = documents({"--input", "a.txt"}).at(0);
  EXPECT_EQ(decoded.size(), 99000u * 3 + 1000u * 5);
}

TEST_F(TokenizeInputs, HiddenFilesAndLinksToNothingStayOutAndAreCounted) {
  folder().write("in/a.txt", "a");
  folder().write("in/._a.txt", "resource fork");
  folder().write("in/.DS_Store", "junk");
  folder().write("in/.git/objects/b.txt", "object");
  folder().write("in/sub/.hidden/c.txt", "c");
  std::filesystem::create_symlink("self", folder() / "in/self");
  std::filesystem::create_symlink("nowhere", folder() / "in/dangling.txt");
  std::filesystem::create_symlink("sub", folder() / "in/link");
  EXPECT_EQ(documents({"--input", "in"}), Texts{"a"});
  EXPECT_EQ(said_["hidden_files"], 4);
  EXPECT_EQ(said_["skipped_links"], 3);
  EXPECT_THAT(TokenFile(folder() / "t.h5").provenance(), HasSubstr("{\"hidden_files\":4,\"skipped_links\":3}\n"));
  EXPECT_EQ(documents({"--input", "in", "--glob", "*.txt"}), Texts{"a"});
  EXPECT_EQ(said_["skipped_links"], 1) << "of those that match";
  Texts all = documents({"--input", "in", "--hidden", "--glob", "*.txt"});
  EXPECT_THAT(all, ElementsAre("resource fork", "object", "a", "c"));
  EXPECT_EQ(documents({"--input", "in/.DS_Store"}), Texts{"junk"}) << "asked for by name";
  folder().write("only/.x", "x");
  refused({"--input", "only"}, "1 hidden ones were left out");
}

TEST_F(TokenizeInputs, WhatIsNoTextIsRefusedByNameWithWhatToDo) {
  const Words tokenizer = {"--tokenizer", "hf:" + (test::tokenizer_fixtures() / "gpt2").string()};
  const auto refuse = [&](const std::string& content, const std::string& reason) {
    folder().write("a.txt", content);
    Words words = {"--input", "a.txt"};
    words.insert(words.end(), tokenizer.begin(), tokenizer.end());
    refused(words, reason);
  };
  refuse("PAR1 and more", "'a.txt' is a Parquet file; write its text column as JSON lines");
  refuse("PK\x03\x04 and more", "an archive; unpack it");
  refuse(gzipped(std::string(257, 'x') + "ustar" + std::string(200, 'y')), "an archive; unpack it");
  refuse("%PDF-1.7", "a PDF");
  refuse(std::string("text\0text", 9), "holds NUL bytes");
  refuse(std::string(200000, 'x') + std::string("\n\0", 2), "holds NUL bytes");
  refuse(std::string("\xff\xfe\0\0x\0\0\0", 8), "UTF-32");
  folder().write("a.txt", std::string("text\0text", 9));
  EXPECT_EQ(documents({"--input", "a.txt"}), Texts{std::string("text\0text", 9)}) << "bytes are bytes";
}

TEST_F(TokenizeInputs, BytesThatAreNoUtf8AreCounted) {
  folder().write("a.txt", "caf\xe9 \xff\xfe and \xe6\x97\n");
  const Words tokenizer = {"--input", "a.txt", "--tokenizer", "hf:" + (test::tokenizer_fixtures() / "gpt2").string()};
  const Texts texts = documents(tokenizer);
  EXPECT_EQ(texts, Texts{"caf\xef\xbf\xbd \xef\xbf\xbd\xef\xbf\xbd and \xef\xbf\xbd\n"});
  EXPECT_EQ(said_["ill_formed_bytes"], 5);
  EXPECT_THAT(TokenFile(folder() / "t.h5").provenance(), HasSubstr("\"ill_formed_bytes\":5"));
  folder().write("a.txt", "caf\xc3\xa9");
  documents(tokenizer);
  EXPECT_EQ(said_["ill_formed_bytes"], 0);
}

TEST_F(TokenizeInputs, StandardInputAndPipesAreReadOnceAndLeaveNothing) {
  const std::string text = noise(5000);
  folder().write("text.gz", gzipped(text));
  const auto through_shell = [&](const std::string& command) {
    test::ProcessOptions options;
    options.folder = folder().path();
    const test::ProcessResult result = test::run_process({"bash", "-c", command}, options);
    EXPECT_EQ(result.status, 0) << result.error;
    return documents_of(Part::kTraining);
  };
  const std::string command = std::string(KVLOOM_BINARY) + " tokenize --valid-fraction 0 --output t.h5 --input ";
  EXPECT_EQ(through_shell("gzip -dc text.gz | " + command + "-"), Texts{text});
  EXPECT_EQ(through_shell(command + "- < text.gz"), Texts{text});
  EXPECT_EQ(through_shell(command + "<(gzip -dc text.gz)"), Texts{text});
  EXPECT_THAT(TokenFile(folder() / "t.h5").provenance(), HasSubstr("\"path\":\"/dev/fd/"));
  for (const auto& entry : std::filesystem::directory_iterator(folder().path())) {
    EXPECT_EQ(entry.path().filename().string().find(".t.h5"), std::string::npos) << entry.path();
  }
}

TEST_F(TokenizeInputs, ALineLongerThanAPieceHasTheIdsOfTheWhole) {
  std::string line;
  while (line.size() < 200000) line += fmt::format("word{} of a line, ", random_.integer(0, 999));
  folder().write("a.txt", line);
  const auto tokenizer = load_huggingface(test::tokenizer_fixtures() / "llama2");
  documents({"--input", "a.txt", "--tokenizer", "hf:" + (test::tokenizer_fixtures() / "llama2").string()});
  const TokenFile file(folder() / "t.h5");
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(file.count(Part::kTraining)));
  file.read(Part::kTraining, 0, tokens);
  std::vector<std::int32_t> wanted = tokenizer->start_ids();
  tokenizer->encode(line, wanted);
  wanted.push_back(tokenizer->separator());
  EXPECT_EQ(tokens, wanted);
  EXPECT_EQ(said_["forced_cuts"], 0);
}

// All who write one file: whoever is told that it worked finds it whole.
TEST_F(TokenizeInputs, TwoWhoWriteOneFileNeverDamageIt) {
  for (const char* name : {"a", "b"}) folder().write(std::string(name) + ".txt", noise(40000));
  for (int round = 0; round < 4; ++round) {
    std::vector<test::ProcessResult> results(3);
    std::vector<TemporaryFolder> elsewhere(3);
    std::vector<std::thread> writers;
    for (std::size_t i = 0; i < results.size(); ++i) {
      writers.emplace_back([&, i] {
        test::ProcessOptions options;
        options.folder = elsewhere[i].path();
        results[i] =
            test::run_process({KVLOOM_BINARY, "tokenize", "--input", (folder() / (i == 0 ? "a.txt" : "b.txt")).string(),
                               "--output", (folder() / "t.h5").string()},
                              options);
      });
    }
    for (std::thread& writer : writers) writer.join();
    int won = 0;
    for (const test::ProcessResult& result : results) {
      if (result.status == 0) {
        ++won;
        continue;
      }
      EXPECT_EQ(result.status, 2) << result.error;
      EXPECT_THAT(result.error, HasSubstr("is being written by process"));
    }
    EXPECT_GT(won, 0);
    TokenFile(folder() / "t.h5").verify_all(1);
    for (const auto& entry : std::filesystem::directory_iterator(folder().path())) {
      EXPECT_NE(entry.path().filename().string()[0], '.') << entry.path();
    }
  }
}

}  // namespace
}  // namespace kvloom
