#include "infer/text/text_stream.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "infer/unicode.h"
#include "tests/support/random.h"
#include "tests/support/small_tokenizer.h"

namespace kvloom {
namespace {

using Texts = std::vector<std::string>;

// Before the stop text that begins first.
std::string cut(const std::string& text, const Texts& stops) {
  std::size_t end = text.size();
  for (const std::string& stop : stops) {
    if (!stop.empty()) end = std::min(end, text.find(stop));
  }
  return text.substr(0, end);
}

std::string filtered(const Texts& pieces, const Texts& stops) {
  StopFilter filter(stops);
  std::string shown;
  for (const std::string& piece : pieces) shown += filter.push(piece);
  return shown + filter.finish();
}

TEST(StopFilter, TheStopTextThatBeginsFirstEndsTheText) {
  EXPECT_EQ(filtered({"aVrze"}, {"rze", "Vrz"}), "a");
  EXPECT_EQ(filtered({"aV", "rz", "e"}, {"Vrz", "rze"}), "a");
  EXPECT_EQ(filtered({"xabc", "d"}, {"bc", "abcd"}), "x");
  EXPECT_EQ(filtered({"xabc", "e"}, {"bc", "abcd"}), "xa");
  EXPECT_EQ(filtered({"xabc"}, {"bc", "abcd"}), "xa") << "the end settles it";
}

TEST(StopFilter, HoldsBackProperBeginningsOnly) {
  StopFilter filter({"STOP", "", "aab"});
  EXPECT_EQ(filter.push("xSTO"), "x");
  EXPECT_EQ(filter.push("S"), "STO");
  EXPECT_EQ(filter.push("aaaa"), "Saa");
  EXPECT_EQ(filter.finish(), "aa");
  EXPECT_FALSE(filter.stopped());
}

TEST(StopFilter, NothingComesAfterAStop) {
  StopFilter filter({"b"});
  EXPECT_EQ(filter.push("abc"), "a");
  EXPECT_TRUE(filter.stopped());
  EXPECT_EQ(filter.push("abc") + filter.finish(), "");
}

// Texts of two letters, so that stop texts overlap with themselves and with one another.
TEST(StopFilter, ShowsTheTextBeforeTheEarliestStopHoweverItIsCut) {
  test::Random random;
  const auto word = [&](std::int64_t longest) {
    std::string text(static_cast<std::size_t>(random.integer(0, longest)), 'a');
    for (char& c : text) c = static_cast<char>('a' + random.integer(0, 1));
    return text;
  };
  for (int round = 0; round < 5000; ++round) {
    const std::string text = word(30);
    Texts stops, pieces;
    for (std::int64_t i = random.integer(1, 4); i > 0; --i) stops.push_back(word(7));
    for (std::size_t at = 0; at < text.size();) {
      pieces.push_back(text.substr(at, static_cast<std::size_t>(random.integer(0, 6))));
      at += pieces.back().size();
    }
    ASSERT_EQ(filtered(pieces, stops), cut(text, stops)) << text << ": " << ::testing::PrintToString(stops);
  }
}

struct Streamed {
  std::string text;
  std::vector<std::string> left;  // "text|tokens" of each push, and of the end
  std::size_t tokens = 0;
  bool stopped = false;
};

Streamed streamed(const Tokenizer& tokenizer, const std::vector<std::int32_t>& ids, TextStreamOptions options) {
  TextStream stream(tokenizer, std::move(options));
  Streamed result;
  const auto take = [&](const TextPiece& piece) {
    result.text += piece.text;
    result.tokens += piece.tokens;
    result.left.push_back(fmt::format("{}|{}", piece.text, piece.tokens));
  };
  for (const std::int32_t id : ids) take(stream.push(id));
  take(stream.finish());
  result.stopped = stream.stopped();
  return result;
}

std::vector<std::int32_t> bytes_of(const std::string& text) { return make_byte_tokenizer()->encode(text); }

TEST(TextStream, TokensLeaveWithTheirText) {
  const auto tokenizer = make_byte_tokenizer();
  EXPECT_THAT(streamed(*tokenizer, bytes_of("xSTx"), {.stops = {"STOP"}}).left,
              ::testing::ElementsAre("x|1", "|0", "|0", "STx|3", "|0"));
  EXPECT_THAT(streamed(*tokenizer, bytes_of("xST"), {.stops = {"STOP"}}).left,
              ::testing::ElementsAre("x|1", "|0", "|0", "ST|2"));
  const Streamed stopped = streamed(*tokenizer, bytes_of("xSTOPy"), {.stops = {"STOP"}});
  EXPECT_EQ(stopped.text, "x");
  EXPECT_EQ(stopped.tokens, 1);
  EXPECT_TRUE(stopped.stopped);
}

TEST(TextStream, ACharactersTokensLeaveTogether) {
  const auto tokenizer = make_byte_tokenizer();
  EXPECT_THAT(streamed(*tokenizer, bytes_of("é€"), {}).left,
              ::testing::ElementsAre("|0", "é|2", "|0", "|0", "€|3", "|0"));
  EXPECT_THAT(streamed(*tokenizer, bytes_of("a\xe2\x82"), {}).left,
              ::testing::ElementsAre("a|1", "|0", "|0", "\xef\xbf\xbd|2"));
  EXPECT_THAT(streamed(*tokenizer, bytes_of("\xe2\x82z"), {}).left,
              ::testing::ElementsAre("|0", "|0", "\xef\xbf\xbdz|3", "|0"));
  EXPECT_EQ(streamed(*tokenizer, bytes_of("a\xff\xe2"), {.ill_formed = IllFormed::kKeep}).text, "a\xff\xe2");
}

TEST(TextStream, ATokenOfWhichAPartIsShownLeavesAtTheStop) {
  const auto tokenizer = test::tokenizer_from(test::byte_level_tokenizer(), "{}");
  // "ab" is one token: 256.
  const Streamed result = streamed(*tokenizer, {'x', 256, 'c', 'd'}, {.stops = {"bc"}});
  EXPECT_EQ(result.text, "xa");
  EXPECT_THAT(result.left, ::testing::ElementsAre("x|1", "a|0", "|1", "|0", "|0"));
}

TEST(TextStream, IdsWithoutTextLeaveInTheirTurn) {
  const auto tokenizer = make_byte_tokenizer();
  EXPECT_THAT(streamed(*tokenizer, {256, 'S', 256, 'x', 9999, -1}, {.stops = {"ST"}}).left,
              ::testing::ElementsAre("|1", "|0", "|0", "Sx|3", "|1", "|1", "|0"));
}

TEST(TextStream, AStopTextMayEndInAReplacedCharacter) {
  const auto tokenizer = make_byte_tokenizer();
  const Streamed result = streamed(*tokenizer, bytes_of("ab\xc3"), {.stops = {"b\xef\xbf\xbd"}});
  EXPECT_EQ(result.text, "a");
  EXPECT_EQ(result.tokens, 1);
  EXPECT_TRUE(result.stopped);
}

// Bytes of any kind: what leaves is well-formed each time, whole in the end, and every token leaves once.
TEST(TextStream, WhatLeavesIsWellFormedAndEverythingLeaves) {
  test::Random random;
  const auto tokenizer = make_byte_tokenizer();
  const std::vector<std::string> parts = {"a", "b", "é", "€", "𝄞", "\xff", "\xe2", "\x82", "\xf0\x9d"};
  for (int round = 0; round < 3000; ++round) {
    std::string text;
    for (std::int64_t i = random.integer(0, 12); i > 0; --i) {
      text += parts[static_cast<std::size_t>(random.integer(0, static_cast<std::int64_t>(parts.size()) - 1))];
    }
    const Texts stops = {"bé", "€€", "never"};
    const Streamed result = streamed(*tokenizer, bytes_of(text), {.stops = stops});
    const std::string whole = replace_ill_formed(text);
    ASSERT_EQ(result.text, cut(whole, stops));
    for (const std::string& piece : result.left) ASSERT_TRUE(is_well_formed(piece)) << piece;
    ASSERT_EQ(result.stopped, result.text != whole);
    ASSERT_EQ(result.stopped ? text.size() : result.tokens, text.size());
  }
}

// Quadratic time would be hours.
TEST(TextStream, LongTextsOfNearStopsTakeLinearTime) {
  const std::string stop = std::string(100'000, 'a') + "b";
  EXPECT_EQ(filtered({std::string(10'000'000, 'a')}, {stop, "ab"}).size(), 10'000'000);
}

}  // namespace
}  // namespace kvloom
