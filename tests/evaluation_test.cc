// Evaluation: what requests hold, what scores are, and that neither batches, order nor ranks change them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "core/device_choice.h"
#include "infer/evaluation/evaluation.h"
#include "infer/evaluation/metrics.h"
#include "infer/evaluation/python_random.h"
#include "infer/evaluation/python_text.h"
#include "infer/evaluation/results.h"
#include "kernels/error.h"
#include "parallel/thread_ranks.h"
#include "tests/support/model_fixture.h"
#include "tests/support/small_tokenizer.h"
#include "tests/support/temporary_folder.h"

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

// Scores

std::unique_ptr<Model> random_model(const std::string& map, int layers, test::Random& random, std::int64_t vocab = 29) {
  static const std::unique_ptr<Allocator> allocator = make_allocator(Device{});
  proto::ModelConfig config = test::small_model(layers, map, 3);
  config.set_vocab(static_cast<std::uint32_t>(vocab));
  auto model = std::make_unique<Model>(ModelConfig::from_proto(config), DType::kF32, *allocator);
  model->initialize(static_cast<std::uint64_t>(random.integer(1, 1 << 30)));
  test::disturb_vectors(*model, random);
  return model;
}

std::vector<TokenRequest> random_requests(std::size_t count, std::int64_t context, std::int64_t vocab,
                                          test::Random& random) {
  std::vector<TokenRequest> requests;
  for (std::size_t i = 0; i < count; ++i) {
    TokenRequest request;
    request.tokens = random.tokens(static_cast<std::size_t>(random.integer(2, context + 1)), vocab);
    request.targets = random.integer(1, static_cast<std::int64_t>(request.tokens.size()) - 1);
    // Often the same input with another last token, or with other targets.
    if (!requests.empty() && random.flip()) {
      request = requests[static_cast<std::size_t>(random.integer(0, static_cast<std::int64_t>(i) - 1))];
      request.tokens.back() = random.tokens(1, vocab).front();
      request.targets = random.integer(1, static_cast<std::int64_t>(request.tokens.size()) - 1);
    }
    requests.push_back(std::move(request));
  }
  return requests;
}

// By the definition of the model, in double precision, token by token.
Score reference_score(const Model& model, const TokenRequest& request) {
  const test::ReferenceModel reference(model.config());
  const auto logits =
      reference.sequential(test::weights_of(model), std::vector<int>(request.tokens.begin(), request.tokens.end() - 1));
  Score score{.log_likelihood = 0, .greedy = true};
  for (auto t = request.tokens.size() - 1 - static_cast<std::size_t>(request.targets); t < logits.size(); ++t) {
    const auto target = static_cast<std::size_t>(request.tokens[t + 1]);
    const double largest = *std::ranges::max_element(logits[t]);
    double total = 0;
    for (const double logit : logits[t]) total += std::exp(logit - largest);
    score.log_likelihood += logits[t][target] - largest - std::log(total);
    score.greedy = score.greedy && logits[t][target] == largest;
  }
  return score;
}

std::vector<Score> all_scores(const Model& model, const ScoringOptions& options, std::span<const TokenRequest> requests,
                              std::int64_t batch_tokens) {
  std::vector<Score> scores(requests.size());
  std::vector<int> computed(requests.size());
  for (const RequestBatch& batch : make_batches(requests, batch_tokens)) {
    const std::vector<Score> found = score_batch(model, options, requests, batch);
    const std::vector<std::size_t> indices = requests_of(batch);
    for (std::size_t i = 0; i < indices.size(); ++i) {
      scores[indices[i]] = found[i];
      ++computed[indices[i]];
    }
  }
  EXPECT_THAT(computed, ::testing::Each(1));
  return scores;
}

TEST(Scores, AreThoseOfTheModelsDefinitionInBothForms) {
  test::Random random;
  for (const std::string map : {"none", "sandwich-top:3", "0s_2_2_5_5s_5", "lasagna-middle:2"}) {
    const auto model = random_model(map, 6, random);
    std::vector<TokenRequest> requests = random_requests(12, 12, 29, random);
    // One that greedy decoding gives.
    TokenRequest greedy{.tokens = random.tokens(3, 29), .targets = 1};
    std::vector<std::pair<double, int>> by_likelihood;
    for (int token = 0; token < 29; ++token) {
      greedy.tokens.back() = token;
      by_likelihood.emplace_back(reference_score(*model, greedy).log_likelihood, token);
    }
    greedy.tokens.back() = std::ranges::max(by_likelihood).second;
    requests.push_back(greedy);
    for (const ScoringForm form : {ScoringForm::kParallel, ScoringForm::kSequential}) {
      // Passes enough for the longest: exact (DESIGN 5).
      const ScoringOptions options{.form = form, .passes = {.without_gradient = 12, .with_gradient = 0}};
      const std::vector<Score> scores = all_scores(*model, options, requests, 40);
      for (std::size_t i = 0; i < requests.size(); ++i) {
        const Score expected = reference_score(*model, requests[i]);
        EXPECT_NEAR(scores[i].log_likelihood, expected.log_likelihood, 1e-3) << map;
        EXPECT_EQ(scores[i].greedy, expected.greedy) << map;
      }
      EXPECT_TRUE(scores.back().greedy);
    }
  }
}

TEST(Scores, DoNotChangeWithBatchesOrOrder) {
  test::Random random;
  const auto model = random_model(test::random_map(random, 6, true), 6, random);
  const std::vector<TokenRequest> requests = random_requests(30, 32, 29, random);
  for (const ScoringForm form : {ScoringForm::kParallel, ScoringForm::kSequential}) {
    const ScoringOptions options{.form = form, .passes = {.without_gradient = 3, .with_gradient = 0}};
    const std::vector<Score> alone = all_scores(*model, options, requests, 1);
    std::vector<std::size_t> order(requests.size());
    std::iota(order.begin(), order.end(), 0);
    std::ranges::shuffle(order, random.engine());
    std::vector<TokenRequest> shuffled;
    for (const std::size_t i : order) shuffled.push_back(requests[i]);
    const std::vector<Score> together = all_scores(*model, options, shuffled, random.integer(33, 500));
    for (std::size_t i = 0; i < order.size(); ++i) {
      EXPECT_NEAR(together[i].log_likelihood, alone[order[i]].log_likelihood, 2e-4);
      EXPECT_EQ(together[i].greedy, alone[order[i]].greedy);
    }
  }
}

TEST(Batches, AreLongestFirstWithinTheirTokensAndShareEqualInputs) {
  test::Random random;
  const std::vector<TokenRequest> requests = random_requests(60, 20, 5, random);
  const std::int64_t limit = random.integer(1, 100);
  std::size_t last = 1000;
  std::set<Tokens> inputs;
  for (const RequestBatch& batch : make_batches(requests, limit)) {
    const auto longest = requests[batch.front().requests.front()].tokens.size() - 1;
    EXPECT_TRUE(batch.size() == 1 || static_cast<std::int64_t>(longest * batch.size()) <= limit);
    for (const SharedInput& shared : batch) {
      const Tokens& tokens = requests[shared.requests.front()].tokens;
      EXPECT_LE(tokens.size() - 1, last);
      last = tokens.size() - 1;
      EXPECT_TRUE(inputs.insert(Tokens(tokens.begin(), tokens.end() - 1)).second) << "an input twice";
    }
  }
}

// Tasks

std::vector<Task> random_tasks(test::Random& random) {
  const auto word = [&] {
    std::string text;
    for (auto length = random.integer(1, 7); length > 0; --length) {
      text += static_cast<char>('a' + random.integer(0, 25));
    }
    return text;
  };
  const auto words = [&](std::int64_t count) {
    std::string text = word();
    while (--count > 0) text += " " + word();
    return text;
  };
  std::string choices;
  std::string targets;
  std::string texts;
  for (int i = 0; i < 7; ++i) {
    nlohmann::json item = {{"context", words(random.integer(1, 6))}, {"answer", random.integer(0, 2)}};
    for (int c = 0; c < 3; ++c) item["choices"].push_back(words(random.integer(1, 2)));
    choices += item.dump() + "\n";
    targets += nlohmann::json{{"context", words(4)}, {"target", " " + word()}}.dump() + "\n";
    texts += nlohmann::json{{"text", words(random.integer(1, 30))}}.dump() + "\n";
  }
  std::vector<Task> tasks;
  tasks.push_back(parse_task(choices, "choices"));
  tasks.push_back(parse_task(targets, "targets"));
  tasks.push_back(parse_task(texts, "texts"));
  return tasks;
}

std::string everything(std::span<const TaskResult> results) {
  std::string text = results_table(results);
  for (const TaskResult& result : results) {
    for (std::size_t i = 0; i < result.items.size(); ++i) text += sample_json(result, i).dump() + "\n";
  }
  return text;
}

TEST(Evaluation, IsTheSameOnAnyNumberOfRanks) {
  test::Random random;
  const auto model = random_model("sandwich-top:3", 6, random, 257);
  const auto tokenizer = make_byte_tokenizer();
  const std::vector<Task> tasks = random_tasks(random);
  EvaluationOptions options{.scoring = {.passes = {.without_gradient = 2, .with_gradient = 0}}, .batch_tokens = 64};
  std::string one;
  for (const int ranks : {1, 2, 3, 5}) {
    run_thread_ranks(ranks, [&](Communicator& world) {
      omp_set_num_threads(1);
      const std::string own = everything(evaluate_tasks(*model, *tokenizer, tasks, options, world));
      if (ranks == 1) one = own;
      EXPECT_EQ(own, one) << ranks << " ranks, rank " << world.rank();
    });
  }
}

TEST(Evaluation, OfALimitTakesTheFirstItems) {
  test::Random random;
  const auto model = random_model("none", 2, random, 257);
  const auto tokenizer = make_byte_tokenizer();
  const std::vector<Task> tasks = random_tasks(random);
  EvaluationOptions options{.limit = 3};
  const auto world = make_single_rank();
  const auto results = evaluate_tasks(*model, *tokenizer, tasks, options, *world);
  const nlohmann::ordered_json json = results_json(results, {.model = "m"});
  for (const char* task : {"choices", "targets", "texts"}) {
    EXPECT_EQ(json["n-samples"][task], (nlohmann::ordered_json{{"original", 7}, {"effective", 3}}));
  }
  EXPECT_EQ(json["results"]["texts"]["word_perplexity_stderr,none"], "N/A");
  EXPECT_EQ(json["higher_is_better"]["targets"]["perplexity"], false);
}

TEST(Evaluation, GoesOnFromWhatAnyNumberOfRanksLeft) {
  test::Random random;
  const TemporaryFolder folder;
  const auto model = random_model("sandwich-middle:2", 4, random, 257);
  const auto tokenizer = make_byte_tokenizer();
  const std::vector<Task> tasks = random_tasks(random);
  EvaluationOptions options{.batch_tokens = 64, .output = folder / "out"};
  std::string whole;
  run_thread_ranks(3, [&](Communicator& world) {
    omp_set_num_threads(1);
    const auto results = evaluate_tasks(*model, *tokenizer, tasks, options, world);
    if (world.rank() == 0) whole = everything(results);
  });
  // As if interrupted while ranks wrote.
  for (const int rank : {0, 1, 2}) {
    const auto file = options.output / fmt::format("progress-{}.jsonl", rank);
    const std::string bytes = read_bytes(file);
    const auto header = static_cast<std::int64_t>(bytes.find('\n')) + 1;
    const auto kept = random.integer(header, static_cast<std::int64_t>(bytes.size()));
    std::filesystem::resize_file(file, static_cast<std::uintmax_t>(kept));
  }
  options.start = EvaluationStart::kResume;
  for (const int ranks : {2, 1}) {
    run_thread_ranks(ranks, [&](Communicator& world) {
      omp_set_num_threads(1);
      EXPECT_EQ(everything(evaluate_tasks(*model, *tokenizer, tasks, options, world)), whole) << ranks;
    });
  }
  // All is known now: nothing is asked again.
  options.on_batch = [](const EvaluationProgress&) { ADD_FAILURE() << "a batch was computed again"; };
  const auto world = make_single_rank();
  EXPECT_EQ(everything(evaluate_tasks(*model, *tokenizer, tasks, options, *world)), whole);
}

TEST(Evaluation, DoesNotGoOnFromAnotherOrADamagedOne) {
  test::Random random;
  const TemporaryFolder folder;
  const auto model = random_model("none", 2, random, 257);
  const auto tokenizer = make_byte_tokenizer();
  const std::vector<Task> tasks = random_tasks(random);
  const EvaluationOptions first{.output = folder / "out", .model_identity = "a"};
  const auto world = make_single_rank();
  evaluate_tasks(*model, *tokenizer, tasks, first, *world);
  const auto reason = [&](const EvaluationOptions& options) -> std::string {
    try {
      evaluate_tasks(*model, *tokenizer, tasks, options, *world);
    } catch (const InputError& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_THAT(reason(first), HasSubstr("holds an evaluation; right is --resume auto"));
  EvaluationOptions resumed = first;
  resumed.start = EvaluationStart::kResume;
  EXPECT_EQ(reason(resumed), "");
  EvaluationOptions other = resumed;
  other.model_identity = "b";
  EXPECT_THAT(reason(other), HasSubstr("its model is \"a\", now \"b\""));
  other = resumed;
  other.scoring.passes = {.without_gradient = 2, .with_gradient = 0};
  EXPECT_THAT(reason(other), HasSubstr("its passes is 9, now 2"));
  const auto file = first.output / "progress-0.jsonl";
  std::string bytes = read_bytes(file);
  bytes[bytes.find('\n') + 3] = '#';
  folder.write("out/progress-0.jsonl", bytes);
  EXPECT_THAT(reason(resumed), HasSubstr("progress-0.jsonl, line 2: is damaged"));
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
