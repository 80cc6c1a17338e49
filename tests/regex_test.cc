// Oniguruma's syntax by PCRE2: what both write the same and mean differently is translated or refused. The expected
// matches are those of Hugging Face's Split, which runs Oniguruma.
#include "infer/regex.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/error.h"

namespace kvloom {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<std::string> matches(std::string_view pattern, std::string_view text) {
  std::vector<Span> spans;
  Regex(pattern, "test").find_all(text, spans);
  std::vector<std::string> found;
  for (const Span& span : spans) found.emplace_back(text.substr(span.begin, span.end - span.begin));
  return found;
}

TEST(Regex, SpacesAreThoseOfUnicode) {
  EXPECT_THAT(matches("\\s+", "a \t\u0085\u00a0\u3000b\u180ec\u200bd"), ElementsAre(" \t\u0085\u00a0\u3000"));
  EXPECT_THAT(matches("[^\\s]+", "a \u2028b\u180e"), ElementsAre("a", "b\u180e"));
  EXPECT_THAT(matches("\\S", " é的"), ElementsAre("é", "的"));
}

TEST(Regex, WordsAndTheirBordersAreThoseOfOniguruma) {
  EXPECT_THAT(matches("\\w+", "né_1² ½-x\u0301\u200dy"), ElementsAre("né_1²", "½", "x\u0301", "y"));
  EXPECT_THAT(matches("[\\w]+", "a²b"), ElementsAre("a", "b"));
  EXPECT_THAT(matches("\\b\\w", "ab ²c"), ElementsAre("a", "²"));
  EXPECT_THAT(matches("\\B\\w", "ab ²c"), ElementsAre("b", "c"));
  EXPECT_THAT(matches("\\W+", "a -²- b"), ElementsAre(" -", "- "));
}

TEST(Regex, IntervalsRepeatWhereRubySaysSo) {
  EXPECT_THAT(matches("a{2}+", "aaaaa"), ElementsAre("aaaa"));
  EXPECT_THAT(matches("a{,2}b", "aaab b"), ElementsAre("aab", "b"));
  EXPECT_THAT(matches("(?:ab){1,2}?", "abab"), ElementsAre("ab", "ab"));
  EXPECT_THAT(matches("a{2}?b", "aab b"), ElementsAre("aab", "b"));
  EXPECT_THAT(matches("a++a", "aaa"), ElementsAre());
  EXPECT_THAT(matches("x{y}", "x{y}"), ElementsAre("x{y}"));
}

TEST(Regex, ScriptsCategoriesAndEscapesMeanOnigurumas) {
  EXPECT_THAT(matches("\\p{Han}+", "漢字かな、"), ElementsAre("漢字"));
  EXPECT_THAT(matches("\\p{Letter}+|\\p{^L}", "ab1"), ElementsAre("ab", "1"));
  EXPECT_THAT(matches("\\h+", "xyzBEEF09g"), ElementsAre("BEEF09"));
  EXPECT_THAT(matches("\\u00e9\\x41\\x{42}", "éAB"), ElementsAre("éAB"));
  EXPECT_THAT(matches("^.$", "a\nb\r\n"), ElementsAre("a"));
  EXPECT_THAT(matches("(?i:'S|k)", "'s \u017f K \u212a"), ElementsAre("'s", "K", "\u212a"));
}

TEST(Regex, ASetWithinASetAddsToIt) {
  EXPECT_THAT(matches("[^(\\s|[.,!])]+", "ab, c(d|e"), ElementsAre("ab", "c", "d", "e"));
  EXPECT_THAT(matches("[[a]-c]+", "ab-c"), ElementsAre("a", "-c"));
}

TEST(Regex, AnEmptyMatchRightBehindAnotherDoesNotCount) {
  EXPECT_THAT(matches("a*", "baac"), ElementsAre("", "aa", ""));
  EXPECT_THAT(matches("x*", "é"), ElementsAre("", ""));
}

TEST(Regex, EscapedTextMatchesItself) {
  const std::string text = "a.*[b]{2}\\ #-\t的\u00e9|^$()?+";
  EXPECT_THAT(matches(escaped_pattern(text), "x" + text + "y"), ElementsAre(text));
}

TEST(Regex, WhatIsNotTranslatedIsRefusedByName) {
  const auto message = [](std::string_view pattern) {
    try {
      Regex(pattern, "split");
    } catch (const InputError& error) {
      return std::string(error.what());
    }
    return std::string("not refused");
  };
  EXPECT_THAT(message("[a[^b]]"), HasSubstr("split: regular expression '[a[^b]]': such a set within a set at 2"));
  EXPECT_THAT(message("[a[:alpha:]]"), HasSubstr("such a set within a set"));
  EXPECT_THAT(message("[a-[c]]"), HasSubstr("a range up to a set"));
  EXPECT_THAT(message("[a&&b]"), HasSubstr("an intersection of sets"));
  EXPECT_THAT(message("a(?i)b"), HasSubstr("a group of this kind"));
  EXPECT_THAT(message("(?m:a)"), HasSubstr("a group of this kind"));
  EXPECT_THAT(message("\\R"), HasSubstr("'\\R'"));
  EXPECT_THAT(message("\\Ka"), HasSubstr("'\\K'"));
  EXPECT_THAT(message("*a"), HasSubstr("a quantifier of nothing"));
  EXPECT_THAT(message("a)"), HasSubstr("')' without '('"));
  EXPECT_THAT(message("(a"), HasSubstr("regular expression '(a'"));
  EXPECT_THAT(message("[a"), HasSubstr("a set without an end"));
  EXPECT_THAT(message("\\p{Klingon}"), HasSubstr("regular expression"));
  EXPECT_THAT(message("\\xe9"), HasSubstr("a byte by its number"));
  EXPECT_THAT(message("a\\"), HasSubstr("at the end"));
}

TEST(Regex, BacktrackingWithoutEndFailsInsteadOfHanging) {
  std::vector<Span> spans;
  EXPECT_THROW(Regex("(a+)+$", "test").find_all(std::string(60, 'a') + "b", spans), Error);
}

TEST(Regex, LongMatchesNeedNoStack) {
  const std::string text(1 << 20, ' ');
  EXPECT_THAT(matches("\\s+(?!\\S)|\\s+", text), ElementsAre(text));
  EXPECT_EQ(matches("(?: |x)*", text.substr(0, 100000)).size(), 1u);
}

}  // namespace
}  // namespace kvloom
