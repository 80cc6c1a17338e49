#include "infer/unicode.h"

#include <gtest/gtest.h>

#include "tests/support/random.h"

namespace kvloom {
namespace {

TEST(Unicode, IllFormedPartsBecomeOneReplacementEach) {
  const std::string r(kReplacementCharacter);
  // Unicode 15, 3.9, tables 3-8 to 3-11.
  EXPECT_EQ(replace_ill_formed("\xc0\xaf\xe0\x80\xbf\xf0\x81\x82\x41"), r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(replace_ill_formed("\xed\xa0\x80\xed\xbf\xbf\xed\xaf\x41"), r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(replace_ill_formed("\xf4\x91\x92\x93\xff\x41\x80\xbf\x42"), r + r + r + r + r + "A" + r + r + "B");
  EXPECT_EQ(replace_ill_formed("\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41"), r + r + r + r + "A");
}

TEST(Unicode, WhatIsWellFormedStaysAndEveryRepairIsWellFormed) {
  test::Random random;
  for (int i = 0; i < 2000; ++i) {
    std::string text;
    for (std::int64_t length = random.integer(0, 30); length > 0; --length) {
      auto code = static_cast<char32_t>(random.integer(0, random.flip() ? 0x7f : 0x10ffff));
      if (code >= 0xd800 && code < 0xe000) code = U'x';
      append_character(text, code);
    }
    ASSERT_TRUE(is_well_formed(text));
    ASSERT_EQ(replace_ill_formed(text), text);
    ASSERT_EQ(finished_prefix(text), text.size());
    // Any cut in a character leaves it for later.
    std::string cut = text;
    if (!cut.empty()) cut.pop_back();
    const std::size_t prefix = finished_prefix(cut);
    ASSERT_TRUE(is_well_formed(std::string_view(cut).substr(0, prefix)));
    ASSERT_EQ(is_well_formed(cut), prefix == cut.size());
    for (std::int64_t damage = random.integer(1, 5); damage > 0 && !text.empty(); --damage) {
      text[static_cast<std::size_t>(random.integer(0, static_cast<std::int64_t>(text.size()) - 1))] =
          static_cast<char>(random.integer(0, 255));
    }
    ASSERT_TRUE(is_well_formed(replace_ill_formed(text)));
  }
}

TEST(Unicode, TextThatComesInBytesIsTheSameTextRepairedPieceByPiece) {
  test::Random random;
  for (int i = 0; i < 2000; ++i) {
    std::string text;
    for (std::int64_t length = random.integer(0, 12); length > 0; --length) {
      static const std::vector<std::string> parts = {"\xe4\xbd\xa0", "\xf0\x9f\x99\x82", "a",    "\xe4",    "\xbd",
                                                     "\xf0\x9f",     "\xc3\xa9",         "\xff", "\xed\xa0"};
      text += parts[static_cast<std::size_t>(random.integer(0, 8))];
    }
    std::string pending;
    std::string shown;
    for (const char byte : text) {
      pending += byte;
      const std::size_t done = finished_prefix(pending);
      shown += replace_ill_formed(pending.substr(0, done));
      pending.erase(0, done);
    }
    ASSERT_EQ(shown + replace_ill_formed(pending), replace_ill_formed(text)) << ::testing::PrintToString(text);
  }
}

TEST(Unicode, NormalizationFormsAreThoseOfTheAnnex) {
  const std::string text = "\u1e9b\u0323 \u00c5 \ufb01 \uac00";  // UAX 15, figure 6
  EXPECT_EQ(normalized(text, NormalizationForm::kNfc), "\u1e9b\u0323 \u00c5 \ufb01 \uac00");
  EXPECT_EQ(normalized(text, NormalizationForm::kNfd), "\u017f\u0323\u0307 A\u030a \ufb01 \u1100\u1161");
  EXPECT_EQ(normalized(text, NormalizationForm::kNfkc), "\u1e69 \u00c5 fi \uac00");
  EXPECT_EQ(normalized(text, NormalizationForm::kNfkd), "s\u0323\u0307 A\u030a fi \u1100\u1161");
  EXPECT_EQ(normalized(std::string("a\0b", 3), NormalizationForm::kNfc), std::string("a\0b", 3));
}

TEST(Unicode, LowerCaseLooksAtOneCharacter) { EXPECT_EQ(lowercased("ÀΣ İ ẞ Ǆ"), "àσ i\u0307 ß ǆ"); }

}  // namespace
}  // namespace kvloom
