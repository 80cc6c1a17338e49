// The fixtures that tests/fixtures/tokenizers/make.py wrote with the reference, github.com/huggingface/tokenizers.
#pragma once

#include <gtest/gtest.h>
#include <zlib.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "infer/unicode.h"
#include "tests/support/temporary_folder.h"

namespace kvloom::test {

inline std::filesystem::path tokenizer_fixtures() {
  return std::filesystem::path(KVLOOM_SOURCE_DIR) / "tests/fixtures/tokenizers";
}

// Numbers of variable length (LEB128) and bytes, from a compressed file.
class PackedFile {
 public:
  explicit PackedFile(const std::filesystem::path& path) {
    const gzFile file = gzopen(path.c_str(), "rb");
    if (file == nullptr) throw std::runtime_error("cannot open " + path.string());
    std::string block(1 << 16, '\0');
    for (int count = 0; (count = gzread(file, block.data(), static_cast<unsigned>(block.size()))) > 0;) {
      bytes_.append(block, 0, static_cast<std::size_t>(count));
    }
    gzclose(file);
  }

  bool done() const { return at_ == bytes_.size(); }
  std::uint64_t number() {
    std::uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
      const auto byte = static_cast<unsigned char>(bytes_.at(at_++));
      value |= static_cast<std::uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
  }
  std::string bytes(std::uint64_t count) {
    at_ += count;
    return bytes_.substr(at_ - count, count);
  }

 private:
  std::string bytes_;
  std::size_t at_ = 0;
};

inline std::vector<std::string> tokenizer_corpus() {
  PackedFile file(tokenizer_fixtures() / "corpus.gz");
  std::vector<std::string> lines;
  while (!file.done()) lines.push_back(file.bytes(file.number()));
  return lines;
}

struct ExpectedLine {
  std::vector<std::int32_t> ids;
  std::string text;  // decoded
};

struct ExpectedLines {
  std::vector<ExpectedLine> lines;
  std::vector<std::int32_t> x;  // the ids of "x" with what the post-processor puts around it
};

inline ExpectedLines expected_lines(const std::string& name, const std::vector<std::string>& corpus) {
  ExpectedLines expected;
  const auto json = nlohmann::json::parse(read_bytes(tokenizer_fixtures() / name / "expected.json"));
  expected.x = json["x"].get<std::vector<std::int32_t>>();
  PackedFile file(tokenizer_fixtures() / name / "expected.gz");
  for (std::size_t i = 0; i < json["lines"]; ++i) {
    ExpectedLine line;
    for (std::uint64_t count = file.number(); count > 0; --count) {
      line.ids.push_back(static_cast<std::int32_t>(file.number()));
    }
    const std::uint64_t bytes = file.number();
    line.text = bytes == 0 ? replace_ill_formed(corpus.at(i)) : file.bytes(bytes - 1);
    expected.lines.push_back(std::move(line));
  }
  EXPECT_TRUE(file.done());
  return expected;
}

}  // namespace kvloom::test
