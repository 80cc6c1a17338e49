// A damaged tokenizer.json is refused with one line or taken, and what is taken encodes and decodes. KVLOOM_FUZZ_RUNS
// and KVLOOM_FUZZ_SECONDS as in fuzz_parsers_test.cc.
#include <gtest/gtest.h>

#include "infer/regex.h"
#include "infer/unicode.h"
#include "tests/support/mutate.h"
#include "tests/support/small_tokenizer.h"

namespace kvloom {
namespace {

using nlohmann::json;

const std::vector<std::string> kTexts = {"", "abc  ab a\n\n",
                                         "caf\xc3\xa9 \xe7\x9a\x84 </s> \xff\xf0\x9f <x><|endoftext|>",
                                         "It's 12345 E\xcc\x81\xe1\x84\x80\xe1\x85\xa1"};

// Every part that a tokenizer.json may have.
std::vector<json> seeds() {
  const json mark = "\xe2\x96\x81";
  const std::vector<json> normalizers = {
      {{"type", "NFC"}},
      {{"type", "NFKD"}},
      {{"type", "Prepend"}, {"prepend", mark}},
      {{"type", "Replace"}, {"pattern", {{"Regex", "a+|\\s{2,}"}}}, {"content", "b"}},
      {{"type", "Strip"}, {"strip_left", true}, {"strip_right", true}},
      {{"type", "StripAccents"}},
      {{"type", "Nmt"}},
      {{"type", "Lowercase"}},
      {{"type", "ByteLevel"}}};
  const std::vector<json> steps = {
      {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"use_regex", true}},
      {{"type", "Split"},
       {"pattern", {{"Regex", "(?i:'s|'t)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|\\s+(?!\\S)|\\s+"}}},
       {"behavior", "Isolated"},
       {"invert", false}},
      {{"type", "Metaspace"}, {"replacement", mark}, {"prepend_scheme", "first"}, {"split", true}},
      {{"type", "Digits"}, {"individual_digits", false}},
      {{"type", "Punctuation"}, {"behavior", "MergedWithNext"}},
      {{"type", "Whitespace"}},
      {{"type", "CharDelimiterSplit"}, {"delimiter", "b"}}};
  const std::vector<json> decoders = {{{"type", "Replace"}, {"pattern", {{"String", mark}}}, {"content", " "}},
                                      {{"type", "ByteFallback"}},
                                      {{"type", "Fuse"}},
                                      {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 1}},
                                      {{"type", "BPEDecoder"}, {"suffix", "c"}}};
  json many = test::character_tokenizer();
  many["normalizer"] = {{"type", "Sequence"}, {"normalizers", normalizers}};
  many["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", steps}};
  many["decoder"] = {{"type", "Sequence"}, {"decoders", decoders}};
  many["post_processor"] = {{"type", "BertProcessing"}, {"sep", {"</s>", 1}}, {"cls", {"<unk>", 0}}};
  many["added_tokens"][2]["normalized"] = true;
  many["added_tokens"][2]["single_word"] = true;
  // The longest, which takes the most time, less often.
  return {many, test::character_tokenizer(), many, test::character_tokenizer(), many, test::byte_level_tokenizer()};
}

json* random_value(json& root, test::Random& random) {
  json* at = &root;
  while (at->is_structured() && !at->empty() && random.integer(0, 5) > 0) {
    auto child = at->begin();
    std::advance(child, random.integer(0, static_cast<std::int64_t>(at->size()) - 1));
    at = &*child;
  }
  return at;
}

// One to three values replaced by awkward ones, or by others of the same file.
std::string rearranged(json root, test::Random& random) {
  static const std::vector<json> awkward = {nullptr,
                                            true,
                                            false,
                                            0,
                                            -1,
                                            1,
                                            258,
                                            70000,
                                            1LL << 40,
                                            1e300,
                                            "",
                                            " ",
                                            "a",
                                            "\xe2\x96\x81",
                                            "abc abc",
                                            "(",
                                            "(a+)+$",
                                            "(?:a|b|ab)*c",
                                            ".*",
                                            "[^a]",
                                            "\\p{L}",
                                            "a{1000}{1000}",
                                            "Sequence",
                                            "ByteLevel",
                                            "<x>",
                                            json::array(),
                                            json::object()};
  for (std::int64_t edits = random.integer(1, 3); edits > 0; --edits) {
    switch (random.integer(0, 4)) {
      case 0: {
        json* target = random_value(root, random);
        if (target->is_object() && !target->empty()) target->erase(target->begin());
        break;
      }
      case 1:
      case 2: {
        json copy = *random_value(root, random);
        *random_value(root, random) = std::move(copy);
        break;
      }
      default:
        *random_value(root, random) =
            awkward[static_cast<std::size_t>(random.integer(0, static_cast<std::int64_t>(awkward.size()) - 1))];
    }
  }
  return root.dump(-1, ' ', false, json::error_handler_t::replace);
}

void use(const std::string& text) {
  const auto tokenizer = make_tokenizer("huggingface", test::packed_tokenizer(text), "fuzz");
  ASSERT_GT(tokenizer->vocab(), tokenizer->separator());
  for (const std::string& line : kTexts) {
    std::vector<std::int32_t> ids;
    try {
      ids = tokenizer->encode(line);
    } catch (const Error& error) {
      // A pattern may backtrack without end.
      ASSERT_EQ(std::string(error.what()).find('\n'), std::string::npos);
      continue;
    }
    StreamDecoder stream(*tokenizer);
    std::string streamed;
    for (const std::int32_t id : ids) streamed += stream.push(id);
    streamed += stream.finish();
    ASSERT_TRUE(is_well_formed(streamed));
    ASSERT_TRUE(is_well_formed(tokenizer->decode(ids)));
  }
}

TEST(FuzzTokenizers, DamagedTokenizerJson) {
  test::Random random;
  const std::vector<json> all = seeds();
  std::vector<std::string> texts;
  for (const json& seed : all) texts.push_back(seed.dump());
  const auto pick = [&] {
    return static_cast<std::size_t>(random.integer(0, static_cast<std::int64_t>(all.size()) - 1));
  };
  const auto next = [&] {
    return random.integer(0, 2) == 0 ? test::mutated(texts[pick()], random) : rearranged(all[pick()], random);
  };
  int taken = 0;
  test::fuzz(next, [&](const std::string& text) {
    use(text);
    ++taken;
  });
  EXPECT_GT(taken, 0) << "nothing that was damaged could be used";
  RecordProperty("taken", taken);
}

TEST(FuzzTokenizers, RegularExpressions) {
  test::Random random;
  test::fuzz({"(?i:'s|'t)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s+(?!\\S)",
              "\\b\\w{2,4}+?\\B|\\h\\x41\\u0041|[\\w\\s\\-\\]]{,3}|\\p{^Han}\\P{Greek}", "(?<=a)b*?|(?>c++)^$\\A\\z"},
             random, [](const std::string& pattern) {
               const Regex regex(replace_ill_formed(pattern), "fuzz");
               std::vector<Span> matches;
               try {
                 regex.find_all("abc 123 Ab\xc3\xa9\n\n  x", matches);
               } catch (const InputError&) {
                 throw;
               } catch (const Error&) {
               }
               for (const Span& match : matches) ASSERT_LE(match.end, 17u);
             });
}

}  // namespace
}  // namespace kvloom
