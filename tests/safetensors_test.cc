#include "core/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstring>

#include "kernels/error.h"
#include "tests/support/random.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/thrown.h"

namespace kvloom {
namespace {

namespace fs = std::filesystem;
using test::message_of;
using ::testing::AllOf;
using ::testing::HasSubstr;

// A file byte by byte, as the format's description has it.
std::string file_of(const std::string& json, const std::string& data) {
  std::string bytes;
  for (std::size_t i = 0; i < 8; ++i) bytes.push_back(static_cast<char>((json.size() >> (8 * i)) & 0xff));
  return bytes + json + data;
}

const std::string kTwoTensors =
    R"({"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[1,2],"data_offsets":[4,12]},)"
    R"("a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}})";

class Safetensors : public ::testing::Test {
 protected:
  std::int64_t draw(std::int64_t least, std::int64_t most) { return random_.integer(least, most); }
  std::string refusal(const std::string& json, const std::string& data) {
    const fs::path file = folder_.write("file.safetensors", file_of(json, data));
    std::string message = message_of([&] { SafetensorsFile opened(file); });
    EXPECT_THAT(message, AllOf(HasSubstr("input: "), HasSubstr(file.string()))) << json;
    return message;
  }

  test::Random random_;
  TemporaryFolder folder_;
};

TEST_F(Safetensors, AFileMadeByHandIsRead) {
  const SafetensorsFile file(folder_.write("file.safetensors", file_of(kTwoTensors + "  ", "abcdefghijkl")));
  ASSERT_EQ(file.tensors().size(), 2u);
  EXPECT_EQ(file.tensors()[0].name, "a");
  EXPECT_EQ(file.tensors()[0].dtype, DType::kBF16);
  EXPECT_EQ(file.tensor("b").shape, (Shape{1, 2}));
  EXPECT_EQ(std::memcmp(file.data(file.tensor("b")).data(), "efghijkl", 8), 0);
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_THAT(message_of([&] { file.tensor("c"); }), HasSubstr("has no tensor c"));
}

TEST_F(Safetensors, WhatIsStreamedOutInPiecesIsReadBack) {
  constexpr std::array kDTypes = {DType::kF32, DType::kBF16, DType::kF16, DType::kI64, DType::kU8};
  std::vector<SafetensorsTensor> tensors;
  std::vector<std::vector<std::byte>> content;
  for (int i = 0; i < 20; ++i) {
    Shape shape(static_cast<std::size_t>(draw(0, 3)));
    for (std::int64_t& size : shape) size = draw(0, 6);
    tensors.push_back(
        {"layer \"" + std::to_string(i) + "\" \xc3\xa9", shape, kDTypes[static_cast<std::size_t>(i % 5)]});
    content.emplace_back(static_cast<std::size_t>(element_count(shape)) * size_of(tensors.back().dtype));
    for (std::byte& byte : content.back()) byte = static_cast<std::byte>(draw(0, 255));
  }
  const fs::path path = folder_ / "out.safetensors";
  SafetensorsWriter writer(path, tensors);
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const auto cut = static_cast<std::size_t>(draw(0, static_cast<std::int64_t>(content[i].size())));
    writer.append(tensors[i].name, std::span(content[i]).first(cut));
    writer.append(tensors[i].name, std::span(content[i]).subspan(cut));
  }
  EXPECT_FALSE(fs::exists(path));
  writer.finish();
  const SafetensorsFile file(path);
  ASSERT_EQ(file.tensors().size(), tensors.size());
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const SafetensorsEntry& entry = file.tensor(tensors[i].name);
    EXPECT_EQ(entry.shape, tensors[i].shape);
    EXPECT_EQ(entry.dtype, tensors[i].dtype);
    EXPECT_TRUE(std::ranges::equal(file.data(entry), content[i]));
  }
}

TEST_F(Safetensors, AWriterRefusesWhatItDidNotDeclareAndLeavesNothingUnfinished) {
  const std::array<std::byte, 8> bytes{};
  const fs::path path = folder_ / "out.safetensors";
  {
    SafetensorsWriter writer(path, {{"a", {2}, DType::kF32}, {"b", {1}, DType::kF32}});
    EXPECT_THAT(message_of([&] { writer.append("b", std::span(bytes).first(4)); }), HasSubstr("where those of a come"));
    writer.append("a", bytes);
    EXPECT_THAT(message_of([&] { writer.append("b", bytes); }), HasSubstr("which wants 4 more"));
    EXPECT_THAT(message_of([&] { writer.finish(); }), HasSubstr("tensor b wants 4 more bytes"));
  }
  EXPECT_TRUE(fs::is_empty(folder_.path()));
  EXPECT_THAT(message_of([&] {
                SafetensorsWriter(path, {{"a", {}, DType::kF32}, {"a", {}, DType::kF32}});
              }),
              HasSubstr("name a is taken"));
  EXPECT_THAT(message_of([&] { SafetensorsWriter(path, {{"a", {-1}, DType::kF32}}); }), HasSubstr("makes no sense"));
  EXPECT_THAT(message_of([&] { SafetensorsWriter(path, {{"\xff", {}, DType::kF32}}); }), HasSubstr("not UTF-8"));
  EXPECT_THAT(message_of([&] { SafetensorsWriter(folder_ / "no/out", {}); }),
              AllOf(HasSubstr("input: "), HasSubstr("no/out cannot be written: there is no folder")));
}

TEST_F(Safetensors, ADTypeThatKvloomLacksIsListedButNotUsable) {
  const std::string json = R"({"a":{"dtype":"F8_E4M3","shape":[3],"data_offsets":[0,3]}})";
  const SafetensorsFile file(folder_.write("file", file_of(json, "abc")));
  EXPECT_EQ(file.tensor("a").stored_dtype, "F8_E4M3");
  EXPECT_FALSE(file.tensor("a").dtype.has_value());
}

TEST_F(Safetensors, HeadersThatLieAreRefusedWithTheReason) {
  const auto one = [](const std::string& body) { return R"({"a":{)" + body + "}}"; };
  EXPECT_THAT(refusal("not json", ""), HasSubstr("no JSON"));
  EXPECT_THAT(refusal("[1]", ""), HasSubstr("no JSON object"));
  EXPECT_THAT(refusal(R"({"a":7})", ""), HasSubstr("tensor a"));
  EXPECT_THAT(refusal(one(R"("shape":[],"data_offsets":[0,4])"), "abcd"), HasSubstr("no dtype"));
  EXPECT_THAT(refusal(one(R"("dtype":"F31","shape":[],"data_offsets":[0,4])"), "abcd"), HasSubstr("'F31'"));
  EXPECT_THAT(refusal(one(R"("dtype":"F32","shape":[-1],"data_offsets":[0,4])"), "abcd"), HasSubstr("whole numbers"));
  EXPECT_THAT(refusal(one(R"("dtype":"F32","shape":[1.5],"data_offsets":[0,4])"), "abcd"), HasSubstr("whole numbers"));
  EXPECT_THAT(refusal(one(R"("dtype":"F32","shape":[2],"data_offsets":[0,4])"), "abcd"), HasSubstr("takes 8 bytes"));
  EXPECT_THAT(refusal(one(R"("dtype":"F32","shape":[1],"data_offsets":[4,0])"), "abcd"), HasSubstr("data_offsets"));
  EXPECT_THAT(refusal(one(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0])"), ""),
              HasSubstr("makes no sense"));
  EXPECT_THAT(refusal(one(R"("dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,4])"), "abcd"),
              HasSubstr("whole numbers"));
  EXPECT_THAT(refusal(one(R"("dtype":"F32","shape":[1],"data_offsets":[4,8])"), "abcdefgh"),
              HasSubstr("begins at byte 4"));
  EXPECT_THAT(refusal(R"({"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},)"
                      R"("b":{"dtype":"U8","shape":[3],"data_offsets":[2,5]}})",
                      "abcde"),
              HasSubstr("tensor b begins at byte 2"));
  EXPECT_THAT(refusal(R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)"
                      R"("a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})",
                      ""),
              HasSubstr("listed twice"));
  EXPECT_THAT(refusal(R"({"__metadata__":{"a":1}})", ""), HasSubstr("must be a string"));
  EXPECT_THAT(refusal(R"({"a":{"dtype":)" + std::string(100000, '[') + "}}", ""), HasSubstr("nested too deep"));
  EXPECT_THAT(refusal(kTwoTensors, "abcdefghijklm"), HasSubstr("13 bytes"));
}

TEST_F(Safetensors, TruncationAnywhereIsRefused) {
  const std::string whole = file_of(kTwoTensors, "abcdefghijkl");
  for (std::size_t size = 0; size < whole.size(); ++size) {
    const fs::path file = folder_.write("short", whole.substr(0, size));
    EXPECT_THAT(message_of([&] { SafetensorsFile opened(file); }),
                AllOf(HasSubstr("input: "), HasSubstr(file.string())));
  }
  const fs::path huge = folder_.write("huge", std::string(8, '\xff') + "{}");
  EXPECT_THAT(message_of([&] { SafetensorsFile opened(huge); }), HasSubstr("no safetensors file"));
  EXPECT_THAT(message_of([&] { SafetensorsFile opened(folder_.path()); }), HasSubstr("not a regular file"));
}

TEST_F(Safetensors, MutatedHeadersAreReadInBoundsOrRefused) {
  for (int round = 0; round < 5000; ++round) {
    std::string json = kTwoTensors;
    for (std::int64_t changes = draw(1, 3); changes > 0; --changes) {
      const auto at = static_cast<std::size_t>(draw(0, static_cast<std::int64_t>(json.size()) - 1));
      if (draw(0, 1) == 0) {
        json[at] = static_cast<char>(draw(0, 2) == 0 ? draw(0, 255) : draw('0', '9'));
      } else {
        json.erase(at, static_cast<std::size_t>(draw(1, 3)));
      }
    }
    try {
      const SafetensorsHeader header = parse_safetensors_header(json, 12, "mutated");
      for (const SafetensorsEntry& entry : header.tensors) {
        EXPECT_LE(entry.begin, 12u);
        EXPECT_LE(entry.bytes, 12u - entry.begin);
      }
    } catch (const InputError& error) {
      EXPECT_THAT(error.what(), HasSubstr("mutated"));
    }
  }
}

}  // namespace
}  // namespace kvloom
