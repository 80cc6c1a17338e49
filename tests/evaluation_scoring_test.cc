// Evaluation: what scores are, and that neither batches, order nor ranks change them, nor where a run was interrupted.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <set>
#include <sstream>

#include "core/device_choice.h"
#include "infer/evaluation/evaluation.h"
#include "infer/evaluation/results.h"
#include "infer/tokenizer.h"
#include "kernels/error.h"
#include "parallel/thread_ranks.h"
#include "tests/support/engine_fixture.h"
#include "tests/support/temporary_folder.h"

namespace kvloom {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Tokens = std::vector<std::int32_t>;

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

std::vector<Score> all_scores(const Scorer& scorer, const ScoringOptions& options,
                              std::span<const TokenRequest> requests, std::int64_t batch_tokens) {
  std::vector<Score> scores(requests.size());
  std::vector<int> computed(requests.size());
  for (const RequestBatch& batch : make_batches(requests, batch_tokens)) {
    const std::vector<Score> found = score_batch(scorer, options, requests, batch);
    const std::vector<std::size_t> indices = requests_of(batch);
    for (std::size_t i = 0; i < indices.size(); ++i) {
      scores[indices[i]] = found[i];
      ++computed[indices[i]];
    }
  }
  EXPECT_THAT(computed, ::testing::Each(1));
  return scores;
}

// The model as inference and as training hold it, K and V as they are computed.
class BothForms {
 public:
  BothForms(const std::string& map, test::Random& random, InferenceFormat format = {})
      : models_(config_of(map), random, format),
        held_(make_scorer(models_.model, kv_format_of(format.compute))),
        trained_(make_scorer(models_.trained)) {}

  const Model& model() const { return models_.trained; }
  std::array<const Scorer*, 2> scorers() const { return {held_.get(), trained_.get()}; }
  const InferenceModel& held_model() const { return models_.model; }

 private:
  static proto::ModelConfig config_of(const std::string& map) { return test::small_model(6, map, 3); }

  test::EngineModel models_;
  std::unique_ptr<Scorer> held_;
  std::unique_ptr<Scorer> trained_;
};

TEST(Scores, AreThoseOfTheModelsDefinitionInBothForms) {
  test::Random random;
  for (const std::string map : {"none", "sandwich-top:3", "0s_2_2_5_5s_5", "lasagna-middle:2"}) {
    const BothForms forms(map, random);
    const Model* model = &forms.model();
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
    for (const Scorer* scorer : forms.scorers()) {
      for (const ScoringForm form : {ScoringForm::kParallel, ScoringForm::kSequential}) {
        // Passes enough for the longest: exact (DESIGN 5).
        const ScoringOptions options{.form = form, .passes = {.without_gradient = 12, .with_gradient = 0}};
        const std::vector<Score> scores = all_scores(*scorer, options, requests, 40);
        for (std::size_t i = 0; i < requests.size(); ++i) {
          const Score expected = reference_score(*model, requests[i]);
          EXPECT_NEAR(scores[i].log_likelihood, expected.log_likelihood, 1e-3) << map;
          EXPECT_EQ(scores[i].greedy, expected.greedy) << map;
        }
        EXPECT_TRUE(scores.back().greedy);
      }
    }
  }
}

// Inference's products give a row the same bits in any company; training's round by the number of rows.
TEST(Scores, DoNotChangeWithBatchesOrOrder) {
  test::Random random;
  const BothForms forms(test::random_map(random, 6, true), random);
  const std::vector<TokenRequest> requests = random_requests(30, 32, 29, random);
  for (const Scorer* scorer : forms.scorers()) {
    const double tolerance = scorer == forms.scorers().front() ? 0 : 2e-4;
    for (const ScoringForm form : {ScoringForm::kParallel, ScoringForm::kSequential}) {
      const ScoringOptions options{.form = form, .passes = {.without_gradient = 3, .with_gradient = 0}};
      const std::vector<Score> alone = all_scores(*scorer, options, requests, 1);
      std::vector<std::size_t> order(requests.size());
      std::iota(order.begin(), order.end(), 0);
      std::ranges::shuffle(order, random.engine());
      std::vector<TokenRequest> shuffled;
      for (const std::size_t i : order) shuffled.push_back(requests[i]);
      const std::vector<Score> together = all_scores(*scorer, options, shuffled, random.integer(33, 500));
      for (std::size_t i = 0; i < order.size(); ++i) {
        EXPECT_NEAR(together[i].log_likelihood, alone[order[i]].log_likelihood, tolerance);
        EXPECT_EQ(together[i].greedy, alone[order[i]].greedy);
      }
    }
  }
}

// What passes give before they have settled is defined by training: inference computes no other number.
TEST(Scores, OfFewPassesAreThoseOfTraining) {
  test::Random random;
  for (const std::string map : {"sandwich-top:3", "pizza-middle:2", "0s_2_2_5_5s_5", "lasagna-top:2", "random",
                                "0_4:1_5:4s_3:2_4_4:1", "0_1_4:1s_4:0_4_0:5"}) {
    const BothForms forms(map == "random" ? test::random_map(random, 6, true) : map, random);
    const std::vector<TokenRequest> requests = random_requests(20, 32, 29, random);
    for (const int passes : {1, 2, 3, 5}) {
      const ScoringOptions options{.passes = {.without_gradient = passes - 1, .with_gradient = 1}};
      const std::vector<Score> held = all_scores(*forms.scorers()[0], options, requests, 100);
      const std::vector<Score> trained = all_scores(*forms.scorers()[1], options, requests, 100);
      for (std::size_t i = 0; i < requests.size(); ++i) {
        EXPECT_NEAR(held[i].log_likelihood, trained[i].log_likelihood, 1e-3) << map << ", " << passes << " passes";
      }
    }
  }
}

TEST(Scores, InBf16AreThoseOfF32RoundedAndInInt8ThoseOfEightBits) {
  test::Random random;
  const std::uint64_t seed = random.seed();
  test::Random first(seed);
  test::Random second(seed);
  const BothForms exact("sandwich-top:3", first);
  const BothForms rounded("sandwich-top:3", second, {.compute = DType::kBF16, .weights = WeightFormat::kBF16});
  const std::vector<TokenRequest> requests = random_requests(20, 32, 29, random);
  const ScoringOptions options{.passes = {.without_gradient = 3, .with_gradient = 1}};
  const auto distance = [&](const Scorer& scorer) {
    const std::vector<Score> found = all_scores(scorer, options, requests, 100);
    const std::vector<Score> expected = all_scores(*exact.scorers()[1], options, requests, 100);
    double most = 0;
    for (std::size_t i = 0; i < requests.size(); ++i) {
      const double of_token =
          std::fabs(found[i].log_likelihood - expected[i].log_likelihood) / static_cast<double>(requests[i].targets);
      most = std::max(most, of_token);
    }
    return most;
  };
  const double bf16 = distance(*rounded.scorers()[0]);
  EXPECT_GT(bf16, 0);
  EXPECT_LT(bf16, 0.2);
  EXPECT_LT(distance(*rounded.scorers()[1]), 0.2);
  const auto int8 = make_scorer(exact.held_model(), KvFormat::kInt8);
  EXPECT_GT(distance(*int8), 0);
  EXPECT_LT(distance(*int8), 0.2);
  EXPECT_EQ(exact.scorers()[0]->format(), "f32");
  EXPECT_EQ(rounded.scorers()[0]->format(), "bf16");
  EXPECT_EQ(int8->format(), "f32, K/V int8");
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
      const std::string own = everything(evaluate_tasks(*make_scorer(*model), *tokenizer, tasks, options, world));
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
  const auto results = evaluate_tasks(*make_scorer(*model), *tokenizer, tasks, options, *world);
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
    const auto results = evaluate_tasks(*make_scorer(*model), *tokenizer, tasks, options, world);
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
      EXPECT_EQ(everything(evaluate_tasks(*make_scorer(*model), *tokenizer, tasks, options, world)), whole) << ranks;
    });
  }
  // All is known now: nothing is asked again.
  options.on_batch = [](const EvaluationProgress&) { ADD_FAILURE() << "a batch was computed again"; };
  const auto world = make_single_rank();
  EXPECT_EQ(everything(evaluate_tasks(*make_scorer(*model), *tokenizer, tasks, options, *world)), whole);
}

// Requests whose scores stand in the folder's files, as often as they do.
std::vector<std::size_t> requests_in(const std::filesystem::path& folder) {
  std::vector<std::size_t> requests;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    std::istringstream lines(read_bytes(entry.path()));
    std::string line;
    std::getline(lines, line);  // what is evaluated
    while (std::getline(lines, line)) requests.push_back(nlohmann::json::parse(line)["request"]);
  }
  std::ranges::sort(requests);
  return requests;
}

TEST(Evaluation, WritesEachScoreOnceAlsoOfABatchThatAKilledRunHadBegunToWrite) {
  test::Random random;
  const TemporaryFolder folder;
  const auto model = random_model("none", 2, random, 257);
  const auto tokenizer = make_byte_tokenizer();
  const std::vector<Task> tasks = random_tasks(random);
  EvaluationOptions options{.batch_tokens = 200, .output = folder / "out"};
  const auto world = make_single_rank();
  const std::string whole = everything(evaluate_tasks(*make_scorer(*model), *tokenizer, tasks, options, *world));
  const std::vector<std::size_t> once = requests_in(options.output);
  const auto file = options.output / "progress-0.jsonl";
  const std::string bytes = read_bytes(file);
  options.start = EvaluationStart::kResume;
  for (int round = 0; round < 8; ++round) {
    folder.write("out/progress-0.jsonl", bytes);
    std::filesystem::resize_file(
        file, static_cast<std::uintmax_t>(random.integer(static_cast<std::int64_t>(bytes.find('\n')) + 1,
                                                         static_cast<std::int64_t>(bytes.size()))));
    EXPECT_EQ(everything(evaluate_tasks(*make_scorer(*model), *tokenizer, tasks, options, *world)), whole);
    EXPECT_EQ(requests_in(options.output), once);
  }
}

// As on machines with disks of their own: rank 0 neither sees nor removes what a killed run left on another's.
TEST(Evaluation, BeginsARanksFileAnewWithItsWholeLinesThatAllRanksThenKnow) {
  const TemporaryFolder folder;
  folder.write("1/progress-1.jsonl",
               "{\"model\":\"a\"}\n{\"request\":5,\"log_likelihood\":-2.0,\"greedy\":false}\n{\"request\":1,\"log_li");
  run_thread_ranks(2, [&](Communicator& world) {
    ProgressLog log(folder / std::to_string(world.rank()), {{"model", "a"}}, EvaluationStart::kResume, world);
    EXPECT_EQ(log.known().size(), 1u);
    EXPECT_TRUE(log.known().contains(5));
    if (world.rank() != 1) return;
    const std::vector<std::size_t> requests = {3};
    const std::vector<Score> scores = {{.log_likelihood = -1, .greedy = true}};
    log.add(requests, scores);
  });
  EXPECT_EQ(read_bytes(folder / "1/progress-1.jsonl"),
            "{\"model\":\"a\"}\n{\"request\":5,\"log_likelihood\":-2.0,\"greedy\":false}\n{\"request\":3,\"log_"
            "likelihood\":-1.0,\"greedy\":true}\n");
}

TEST(Evaluation, WarnsOfItemsThatTheModelCannotReadToTheirBeginning) {
  test::Random random;
  const auto model = random_model("none", 2, random, 257);
  const auto tokenizer = make_byte_tokenizer();
  const std::int64_t context = model->config().context;
  // Context, target, and nothing before: as many tokens as the context and one behind it.
  const auto item = [&](std::int64_t characters) {
    return nlohmann::json{{"context", std::string(static_cast<std::size_t>(characters), 'a')}, {"target", "b"}}.dump() +
           "\n";
  };
  const std::vector<Task> tasks = {parse_task(item(context) + item(3), "fits"),
                                   parse_task(item(context + 1) + item(2) + item(3 * context), "cut")};
  std::vector<std::string> warnings;
  const EvaluationOptions options{.warn = [&](const std::string& warning) { warnings.push_back(warning); }};
  const auto world = make_single_rank();
  evaluate_tasks(*make_scorer(*model), *tokenizer, tasks, options, *world);
  EXPECT_THAT(warnings,
              ElementsAre(fmt::format(
                  "cut: 2 of 3 items are longer than the model's context of {} tokens; their beginning is cut "
                  "off",
                  context)));
}

TEST(Evaluation, DoesNotGoOnFromAnotherOrADamagedOne) {
  test::Random random;
  const TemporaryFolder folder;
  const auto model = random_model("none", 2, random, 257);
  const auto tokenizer = make_byte_tokenizer();
  const std::vector<Task> tasks = random_tasks(random);
  const EvaluationOptions first{.output = folder / "out", .model_identity = "a"};
  const auto world = make_single_rank();
  evaluate_tasks(*make_scorer(*model), *tokenizer, tasks, first, *world);
  const auto reason = [&](const EvaluationOptions& options) -> std::string {
    try {
      evaluate_tasks(*make_scorer(*model), *tokenizer, tasks, options, *world);
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
  EXPECT_THAT(reason(other), HasSubstr("its checkpoint is another than the one given now"));
  other = resumed;
  other.scoring.passes = {.without_gradient = 2, .with_gradient = 0};
  EXPECT_THAT(reason(other), HasSubstr("its passes is 9, now 2"));
  const auto file = first.output / "progress-0.jsonl";
  std::string bytes = read_bytes(file);
  bytes[bytes.find('\n') + 3] = '#';
  folder.write("out/progress-0.jsonl", bytes);
  EXPECT_THAT(reason(resumed), HasSubstr("progress-0.jsonl, line 2: is damaged"));
}

// Whatever may change the scores, one thing at a time.
TEST(Evaluation, DoesNotGoOnWithAnythingElseThanBefore) {
  test::Random random;
  const TemporaryFolder folder;
  const auto tokenizer = make_byte_tokenizer();
  const std::vector<Task> tasks = random_tasks(random);
  const auto world = make_single_rank();
  CachingCpuAllocator allocator;
  proto::ModelConfig message = test::small_model(2, "none");
  message.set_vocab(257);
  const auto model_of = [&](std::uint32_t context, DType dtype) {
    message.set_context(context);
    auto model = std::make_unique<Model>(ModelConfig::from_proto(message), dtype, allocator);
    model->initialize(1);
    return model;
  };
  const auto same = model_of(64, DType::kF32);
  const EvaluationOptions first{.limit = 2, .output = folder / "out", .model_identity = "a"};
  evaluate_tasks(*make_scorer(*same), *tokenizer, tasks, first, *world);
  const auto reason = [&](const Model& model, const std::vector<Task>& asked, const auto& change) -> std::string {
    EvaluationOptions options = first;
    options.start = EvaluationStart::kResume;
    change(options);
    try {
      evaluate_tasks(*make_scorer(model), *tokenizer, asked, options, *world);
    } catch (const InputError& error) {
      return error.what();
    }
    return "";
  };
  const auto nothing = [](EvaluationOptions&) {};
  EXPECT_EQ(reason(*same, tasks, nothing), "");
  EXPECT_THAT(reason(*model_of(65, DType::kF32), tasks, nothing), HasSubstr("its context is 64, now 65"));
  EXPECT_THAT(reason(*model_of(64, DType::kBF16), tasks, nothing), HasSubstr("its precision is \"f32\", now \"bf16\""));
  EXPECT_THAT(reason(*same, tasks, [](EvaluationOptions& o) { o.model_identity = "b"; }), HasSubstr("checkpoint"));
  EXPECT_THAT(reason(*same, tasks, [](EvaluationOptions& o) { o.batch_tokens = 4095; }),
              HasSubstr("its batch_tokens is 4096, now 4095"));
  EXPECT_THAT(reason(*same, tasks, [](EvaluationOptions& o) { o.limit = 1; }), HasSubstr("with another --limit?"));
  EXPECT_THAT(reason(*same, tasks, [](EvaluationOptions& o) { ++o.scoring.passes.with_gradient; }),
              HasSubstr("its passes is"));
  EXPECT_THAT(reason(*same, tasks, [](EvaluationOptions& o) { o.scoring.form = ScoringForm::kSequential; }),
              HasSubstr("its form is \"parallel\""));
  std::vector<Task> other = tasks;
  ++other.front().checksum;
  EXPECT_THAT(reason(*same, other, nothing), HasSubstr("had another content"));
  other = tasks;
  other.front().name += "-2";
  EXPECT_THAT(reason(*same, other, nothing), HasSubstr("its tasks are"));
}

}  // namespace
}  // namespace kvloom
