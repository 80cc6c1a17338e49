// Evaluation: what task files say, and what requests they become.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "infer/evaluation/metrics.h"
#include "infer/evaluation/python_random.h"
#include "infer/evaluation/requests.h"
#include "infer/evaluation/task.h"
#include "infer/text/python_text.h"
#include "kernels/error.h"
#include "tests/support/random.h"
#include "tests/support/small_tokenizer.h"
#include "tests/support/tokenizer_fixture.h"

namespace kvloom {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Tokens = std::vector<std::int32_t>;

// Text

TEST(PythonText, IsStrippedCountedAndCapitalisedAsPythonDoes) {
  EXPECT_EQ(right_stripped(" a b \t\r\n\x1c\x1f\x0b\x0c"), " a b");
  EXPECT_EQ(right_stripped("a\xc2\x85\xc2\xa0\xe2\x80\x89\xe3\x80\x80\xe2\x80\xa8"), "a");
  EXPECT_EQ(right_stripped("a\xe2\x80\x8b"), "a\xe2\x80\x8b") << "a zero width space is no space";
  EXPECT_EQ(stripped("\n  \xc3\xa9 x\t"), "\xc3\xa9 x");
  EXPECT_EQ(stripped(" \n "), "");
  EXPECT_EQ(count_words("two words"), 2);
  EXPECT_EQ(count_words("  white space   at both ends\n"), 7);
  EXPECT_EQ(count_words(""), 1);
  EXPECT_EQ(capitalized("the BBC Is"), "The bbc is");
  EXPECT_EQ(capitalized("\xc3\xa9T\xc3\x89"), "\xc3\x89t\xc3\xa9");
  EXPECT_EQ(capitalized(""), "");
}

TEST(PythonRandomTest, DrawsWhatPythonDraws) {
  PythonRandom zero(0);
  EXPECT_EQ(zero.uniform(), 0.8444218515250481);
  EXPECT_EQ(zero.uniform(), 0.7579544029403025);
  EXPECT_EQ(zero.uniform(), 0.420571580830845);
  PythonRandom seven(7);
  std::vector<std::size_t> drawn;
  for (int i = 0; i < 5; ++i) drawn.push_back(seven.index(1000));
  EXPECT_THAT(drawn, ElementsAre(323, 150, 650, 72, 535));
  PythonRandom largest(4294967295u);
  for (int i = 1; i < 2000; ++i) largest.uniform();
  EXPECT_EQ(largest.uniform(), 0.8566943491910826);
}

TEST(StandardErrors, AreTheHarnesss) {
  const std::vector<double> right = {1, 0, 0, 1, 1};
  EXPECT_NEAR(standard_error_of_mean(right), 0.24494897427831783, 1e-15);
  const std::vector<double> log_likelihoods = {-1.5, -0.25, -3.0, -2.125, -0.5};
  EXPECT_NEAR(standard_error_of_perplexity(log_likelihoods), 2.353204898464869, 1e-12);
}

// Task files

std::string rejection(const std::string& text) {
  try {
    parse_task(text, "folder/some.jsonl");
  } catch (const InputError& error) {
    return error.what();
  }
  return "nothing was rejected";
}

TEST(TaskFile, WithoutAHeaderIsNamedByItsFileAndKnownByItsItems) {
  const Task choices = parse_task(R"({"context": "a", "choices": ["b", "c"], "answer": [1, 0], "more": 3})"
                                  "\n\n",
                                  "folder/some.jsonl");
  EXPECT_EQ(choices.name, "some");
  EXPECT_EQ(choices.kind, TaskKind::kMultipleChoice);
  EXPECT_THAT(choices.metrics, ElementsAre("acc", "acc_norm", "acc_bytes"));
  EXPECT_EQ(choices.items.at(0).queries.at(1).continuation, " c");
  EXPECT_THAT(choices.items.at(0).answers, ElementsAre(1, 0));
  EXPECT_EQ(choices.items.at(0).content["more"], 3);
  const Task target = parse_task(R"({"context": "a", "target": "b"})", "t");
  EXPECT_EQ(target.kind, TaskKind::kLogLikelihood);
  EXPECT_EQ(target.items.at(0).queries.at(0).continuation, "b");
  const Task text = parse_task("{\"text\": \"\xc3\xa9 b\"}", "t");
  EXPECT_EQ(text.kind, TaskKind::kLogLikelihoodRolling);
  EXPECT_EQ(text.items.at(0).words, 2);
  EXPECT_EQ(text.items.at(0).bytes, 4);
}

TEST(TaskFile, HeaderNamesTaskDelimiterMetricsAndGrid) {
  const Task task = parse_task(
      R"({"task": "x-1", "kind": "multiple_choice", "target_delimiter": "", "metrics": ["acc"], "version": 2.0, )"
      R"("grid": {"rows": "r", "columns": "c"}})"
      "\n"
      R"({"contexts": ["a", "b"], "continuation": "d", "answer": 1, "r": 1, "c": "z"})",
      "t");
  EXPECT_EQ(task.name, "x-1");
  EXPECT_EQ(task.version, 2.0);
  EXPECT_EQ(task.items.at(0).queries.at(1).context, "b");
  EXPECT_EQ(task.items.at(0).queries.at(1).continuation, "d");
}

TEST(TaskFile, BadItemsAreRefusedWithFileLineAndField) {
  const std::string good = R"({"context": "a", "choices": ["b", "c"], "answer": 0})"
                           "\n";
  const auto expect = [&](const std::string& bad, const std::string& why) {
    EXPECT_THAT(rejection(good + bad + "\n" + good), AllOf(HasSubstr("folder/some.jsonl, line 2"), HasSubstr(why)))
        << bad;
  };
  expect("{\"context\": \"a\"", "is no JSON object");
  expect("[1]", "is no JSON object");
  expect("{}", "is no item");
  expect(R"({"context": "a", "choices": ["b", "c"]})", "has no field 'answer'");
  expect(R"({"context": "a", "choices": ["b", "c"], "answer": 2})", "'answer' is 2; right are 0 to 1");
  expect(R"({"context": "a", "choices": ["b", "c"], "answer": -1})", "'answer' is -1");
  expect(R"({"context": "a", "choices": ["b", "c"], "answer": []})", "'answer' names no choice");
  expect(R"({"context": "a", "choices": ["b"], "answer": 0})", "'choices' has one alone");
  expect(R"({"context": "a", "choices": ["b", ""], "answer": 0})", "'choices' has an empty one");
  expect(R"({"context": "a", "choices": ["b", 3], "answer": 0})", "'choices' holds number; right is a text");
  expect(R"({"context": 1, "choices": ["b", "c"], "answer": 0})", "'context' holds number; right is a text");
  expect(R"({"contexts": ["a", "b"], "answer": 0})", "has no field 'continuation'");
  expect(R"({"context": "a", "target": "b"})", "a loglikelihood item in a task of kind multiple_choice");
  expect(R"({"text": ""})", "a loglikelihood_rolling item");
  EXPECT_THAT(rejection(R"({"text": ""})"), HasSubstr("line 1: 'text' is empty"));
  EXPECT_THAT(rejection(R"({"text": "a", "words": 0})"), HasSubstr("'words' is 0; right is 1 or more"));
  EXPECT_THAT(rejection(""), HasSubstr("holds no items"));
  EXPECT_THAT(rejection("{\"task\": \"a/b\"}\n" + good), HasSubstr("'a/b' is no name of a task"));
  EXPECT_THAT(rejection("{\"task\": \"a\", \"kind\": \"chess\"}\n" + good), HasSubstr("'kind' is 'chess'"));
  EXPECT_THAT(rejection("{\"task\": \"a\", \"metrics\": [\"f1\"]}\n" + good), HasSubstr("metric 'f1'; right for"));
  EXPECT_THAT(rejection("{\"task\": \"a\", \"grid\": {\"rows\": \"r\", \"columns\": \"c\"}}\n" + good),
              HasSubstr("line 2: has no field 'r'"));
}

// Requests

TEST(Windows, HaveEveryTokenAsTargetOnceBehindAllTheContextThatFits) {
  test::Random random;
  for (int round = 0; round < 50; ++round) {
    const std::int64_t context = random.integer(1, 9);
    const Tokens tokens = random.tokens(static_cast<std::size_t>(random.integer(0, 40)), 1000);
    Tokens predicted;
    for (const TokenRequest& window : rolling_windows(tokens, 1000, context)) {
      const auto length = static_cast<std::int64_t>(window.tokens.size());
      EXPECT_LE(length, context + 1);
      EXPECT_GE(window.targets, 1);
      EXPECT_LT(window.targets, length) << "the first target has something before it";
      const auto begin = predicted.size();
      predicted.insert(predicted.end(), window.tokens.end() - window.targets, window.tokens.end());
      if (begin == 0) {
        EXPECT_EQ(window.tokens.front(), 1000);
        EXPECT_EQ(window.targets + 1, length);
        continue;
      }
      EXPECT_EQ(length, context + 1);
      EXPECT_TRUE(std::equal(window.tokens.rbegin(), window.tokens.rend(), predicted.rbegin()));
    }
    EXPECT_EQ(predicted, tokens);
  }
}

TEST(Pairs, GiveTheContextsTrailingSpaceToTheContinuation) {
  const auto bytes = make_byte_tokenizer();
  const RequestEncoder encoder(*bytes, 100);
  const TokenRequest request = encoder.pair({"ab \n", " c"}, "here");
  EXPECT_EQ(request.tokens, bytes->encode("ab \n c"));
  EXPECT_EQ(request.targets, 4);
}

// As the harness: the context as it is encoded alone, then what the whole has behind as many tokens.
TEST(Pairs, OfATokenThatSpansTheJoinHaveTheContextAsItIsAlone) {
  const auto tokenizer = load_huggingface(test::tokenizer_fixtures() / "gpt2");
  const RequestEncoder encoder(*tokenizer, 1000);
  const std::string text = "the reader reads another reader's keys and values of the layer above";
  int spanning = 0;
  for (std::size_t cut = 1; cut + 1 < text.size(); ++cut) {
    const Query query{text.substr(0, cut), text.substr(cut)};
    std::string context = query.context;
    if (context.ends_with(' ')) context.pop_back();
    const std::vector<std::int32_t> alone = tokenizer->encode(context);
    const std::vector<std::int32_t> whole = tokenizer->encode(text);
    if (whole.size() <= alone.size()) continue;
    std::vector<std::int32_t> wanted = alone;
    wanted.insert(wanted.end(), whole.begin() + static_cast<std::ptrdiff_t>(alone.size()), whole.end());
    const TokenRequest request = encoder.pair(query, "here");
    EXPECT_EQ(request.tokens, wanted) << cut;
    EXPECT_EQ(request.targets, static_cast<std::int64_t>(whole.size() - alone.size()));
    if (wanted != whole) ++spanning;
  }
  EXPECT_GT(spanning, 10);
}

TEST(Pairs, BehindNothingStandThePrefixAndWhatIsTooLongLosesItsStart) {
  const auto bytes = make_byte_tokenizer();
  const RequestEncoder encoder(*bytes, 4);
  EXPECT_THAT(encoder.pair({"", "ab"}, "here").tokens, ElementsAre(256, 'a', 'b'));
  EXPECT_EQ(encoder.pair({"", "ab"}, "here").targets, 2);
  const TokenRequest request = encoder.pair({"abcdefgh", "xy"}, "here");
  EXPECT_THAT(request.tokens, ElementsAre('f', 'g', 'h', 'x', 'y'));
  EXPECT_EQ(request.targets, 2);
  EXPECT_EQ(encoder.pair({"a", "wxyz"}, "here").tokens.size(), 5);
  EXPECT_THROW(encoder.pair({"a", "vwxyz"}, "here"), InputError);
}

TEST(Pairs, OfATextThatBeginsWithItsOwnPrefixHaveItOnce) {
  const auto tokenizer = test::tokenizer_from(test::byte_level_tokenizer());
  const RequestEncoder encoder(*tokenizer, 100);
  EXPECT_EQ(tokenizer->prefix_id(), 258);
  const TokenRequest request = encoder.pair({"", "<|endoftext|>a"}, "here");
  EXPECT_THAT(request.tokens, ElementsAre(258, 'a'));
  EXPECT_EQ(request.targets, 1);
}

TEST(Pairs, WithoutATokenToScoreAreRefusedWithTheirPlace) {
  const auto bytes = make_byte_tokenizer();
  const RequestEncoder encoder(*bytes, 10);
  const auto reason = [&](const Query& query) -> std::string {
    try {
      encoder.pair(query, "file.jsonl, line 7");
    } catch (const InputError& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_THAT(reason({"ab", ""}), HasSubstr("file.jsonl, line 7: '' has no token of its own"));
  EXPECT_THAT(reason({" ", "b"}), HasSubstr("file.jsonl, line 7: the context ' ' has no token"));
  EXPECT_THAT(reason({"ab", "0123456789x"}), HasSubstr("a continuation of 11 tokens; the model's context is 10"));
}

double value_of(const std::vector<Metric>& metrics, const std::string& name) {
  const auto found = std::ranges::find(metrics, name, &Metric::name);
  EXPECT_NE(found, metrics.end()) << name;
  return found == metrics.end() ? NAN : found->value;
}

// Of choices "\xc3\xa9", a character of two bytes, and "ab": the first is likelier, by byte too, but not by character.
TEST(Metrics, ChoicesAreNormalisedByCharactersAndByBytes) {
  const Task task = parse_task("{\"context\": \"a\", \"choices\": [\"\xc3\xa9\", \"ab\"], \"answer\": 1}", "t");
  const std::vector<ItemResult> results = {{.scores = {{-1.5, false}, {-2, false}}}};
  const std::vector<Metric> metrics = task_metrics(task, results);
  EXPECT_EQ(value_of(metrics, "acc"), 0);
  EXPECT_EQ(value_of(metrics, "acc_norm"), 1);
  EXPECT_EQ(value_of(metrics, "acc_bytes"), 0);
}

// Each is the same nats over another count, of all texts together.
TEST(Metrics, OfTextsAreTheirNatsOverWordsBytesAndTokens) {
  const Task task = parse_task("{\"text\": \"one two\"}\n{\"text\": \"\xc3\xa9\"}", "t");
  const std::vector<ItemResult> results = {{.scores = {{-6, false}}, .tokens = 5},
                                           {.scores = {{-2, false}}, .tokens = 1}};
  const std::vector<Metric> metrics = task_metrics(task, results);
  constexpr double kNats = 8;
  EXPECT_NEAR(value_of(metrics, "bits_per_byte") * (7 + 2) * std::log(2.0), kNats, 1e-12);
  EXPECT_NEAR(std::log(value_of(metrics, "byte_perplexity")) * (7 + 2), kNats, 1e-12);
  EXPECT_NEAR(std::log(value_of(metrics, "word_perplexity")) * (2 + 1), kNats, 1e-12);
  EXPECT_NEAR(std::log(value_of(metrics, "token_perplexity")) * (5 + 1), kNats, 1e-12);
}

TEST(Grid, HasTheAccuracyOfEachCell) {
  Task task = parse_task(R"({"task": "t", "grid": {"rows": "length", "columns": "depth"}})"
                         "\n"
                         R"({"context": "a", "choices": ["b", "c"], "answer": 0, "length": 100, "depth": 0.5})"
                         "\n"
                         R"({"context": "a", "choices": ["b", "c"], "answer": 1, "length": 20, "depth": 0.5})"
                         "\n"
                         R"({"context": "a", "choices": ["b", "c"], "answer": 1, "length": 100, "depth": 0.5})"
                         "\n"
                         R"({"context": "a", "choices": ["b", "c"], "answer": 0, "length": 100, "depth": 0})",
                         "t");
  const ItemResult first{.scores = {{-1, false}, {-2, false}}};
  const std::vector<ItemResult> results(4, first);
  const GridResult grid = grid_result(task, results);
  EXPECT_THAT(grid.rows, ElementsAre(20, 100));
  EXPECT_THAT(grid.columns, ElementsAre(0, 0.5));
  EXPECT_EQ(grid.cells[0][0].items, 0);
  EXPECT_EQ(grid.cells[0][1].accuracy, 0);
  EXPECT_EQ(grid.cells[1][0].accuracy, 1);
  EXPECT_EQ(grid.cells[1][1].accuracy, 0.5);
  EXPECT_EQ(grid.cells[1][1].items, 2);
}

}  // namespace
}  // namespace kvloom
