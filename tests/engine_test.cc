// The engine computes what sequential semantics define, whatever shares its steps.
#include "infer/engine/engine.h"

#include <gtest/gtest.h>

#include "tests/support/engine_fixture.h"
#include "tests/support/sanitized.h"

namespace kvloom {
namespace {

constexpr int kLayers = 6;
constexpr std::int64_t kContext = 160;

proto::ModelConfig small(const std::string& map, int window = 5, bool no_diagonal = false) {
  proto::ModelConfig config = test::small_model(kLayers, map, window);
  config.set_context(kContext);
  // Upward reads hand rounding errors on from token to token: larger weights make some random maps chaotic.
  config.set_initializer_range(0.15);
  config.set_no_diagonal(no_diagonal);
  return config;
}

std::vector<std::string> maps_for(test::Random& random) {
  std::vector<std::string> maps;
  for (const std::string& name : test::nine_maps()) maps.push_back(name + ":3");
  for (const char* map : {"none", "cla:2", "yoco", "lckv:2", "last-shared:3", "0s_1s_3_3s_5s_5", "0s_0s_0s_3s_3s_3s",
                          "fused-lite:3", "0s_1s_2_2:0_2:0_2:1s", "0_4:0_2:4s_3:1_4_4:2"}) {
    maps.emplace_back(map);
  }
  const int random_maps = test::repetitions(20, 4, "random maps");
  for (int i = 0; i < random_maps; ++i) maps.push_back(test::random_map(random, kLayers, i % 2 == 0));
  return maps;
}

// Options that change when things run, and with `numeric` also those that decide what is computed.
EngineOptions random_options(test::Random& random, EngineOptions options) {
  options.page_size = options.grid % 32 == 0 && random.flip() ? 32 : 16;
  options.max_chunk = random.integer(1, 64);
  options.max_sequences = random.integer(1, 8);
  options.budget = random.integer(1, 600);
  options.prefix_cache = random.flip();
  options.context = kContext;
  return options;
}

std::int64_t bytes_of_one(const InferenceModel& model, const EngineOptions& options) {
  return paged_bytes(model.config(), options.kv_format, options.page_size, kContext,
                     std::max(options.max_chunk, options.grid));
}

EngineOptions exact_options(test::Random& random) {
  EngineOptions options;
  options.tolerance = 0;
  options.window = random.integer(1, 64);
  options.grid = 16 * random.integer(1, 6);
  options.page_size = 16;
  return options;
}

struct Counts {
  int requests = 0;
  int tokens = 0;
  int cancelled = 0;
  int preemptions = 0;
  int hits = 0;
  int ties = 0;
};

Request random_request(test::Random& random, const std::vector<std::int32_t>& common, std::int64_t vocab) {
  Request request;
  // Half of the prompts share a beginning, so that prefixes are found.
  if (random.flip()) {
    const auto shared = static_cast<std::ptrdiff_t>(random.integer(1, std::ssize(common)));
    request.prompt.assign(common.begin(), common.begin() + shared);
  }
  const auto own = random.tokens(static_cast<std::size_t>(random.integer(1, 40)), vocab);
  request.prompt.insert(request.prompt.end(), own.begin(), own.end());
  request.max_new_tokens = random.integer(1, 24);
  request.sampling.temperature = 0;
  request.alternatives = 0;
  request.priority = static_cast<int>(random.integer(0, 2));
  return request;
}

// Arrivals at random steps, some cancelled at random moments. Every answer is that of the same request alone.
void serve_at_random(test::Random& random, const test::EngineModel& built, const EngineOptions& options,
                     const std::vector<Request>& requests, const std::vector<test::Answer>& alone, Counts& counts,
                     const std::string& what) {
  Engine engine(built.model, options);
  test::Answers answers;
  std::map<RequestId, std::size_t> number;
  std::map<RequestId, int> cancelled_at;
  std::size_t next = 0;
  for (int step = 0; next < requests.size() || !engine.is_idle(); ++step) {
    ASSERT_LT(step, 200000) << what << ": no progress";
    while (next < requests.size() && random.integer(0, 3) == 0) {
      const RequestId id = engine.submit(requests[next], step);
      number[id] = next++;
      if (random.integer(0, 4) == 0) cancelled_at[id] = step + static_cast<int>(random.integer(0, 30));
    }
    for (const Event& event : engine.step(step)) answers[{event.request, event.choice}].take(event);
    for (const auto& [id, at] : cancelled_at) {
      if (at == step) engine.cancel(id);
    }
  }
  for (const PageCounts& pages : engine.counts().pages) {
    EXPECT_EQ(pages.held, 0) << what;
    EXPECT_EQ(pages.free + pages.cached, pages.total) << what;
  }
  counts.preemptions += static_cast<int>(engine.counts().sequences.preemptions);
  for (const auto& [id, index] : number) {
    const test::Answer& got = answers[{id, 0}];
    const test::Answer& wanted = alone[index];
    ++counts.requests;
    if (cancelled_at.contains(id) && got.finish == FinishReason::kNone) {
      ++counts.cancelled;
      ASSERT_LE(got.tokens.size(), wanted.tokens.size()) << what;
      EXPECT_TRUE(std::equal(got.tokens.begin(), got.tokens.end(), wanted.tokens.begin())) << what;
      continue;
    }
    counts.hits += got.usage.cached_tokens > 0 ? 1 : 0;
    EXPECT_EQ(got.tokens, wanted.tokens) << what << ", request " << index;
    EXPECT_EQ(got.log_probabilities, wanted.log_probabilities)
        << what << ", request " << index << ": not the same bits";
  }
}

TEST(Engine, GreedyTokensEqualTheTokenByTokenReferenceInAnyCompany) {
  test::Random random;
  Counts counts;
  for (const std::string& map : maps_for(random)) {
    test::EngineModel built(small(map, 5, random.integer(0, 2) == 0), random);
    const std::int64_t vocab = built.model.config().vocab;
    const EngineOptions exact = exact_options(random);
    const std::vector<std::int32_t> common = random.tokens(80, vocab);
    std::vector<Request> requests;
    std::vector<test::Answer> alone;
    const int count = test::repetitions(12, 3, "requests of a map");
    for (int i = 0; i < count; ++i) {
      requests.push_back(random_request(random, common, vocab));
      const Request& request = requests.back();
      Engine engine(built.model, exact);
      alone.push_back(test::answer_of(engine, request));
      const test::Reference reference = test::greedy_reference(built.trained, request.prompt, request.max_new_tokens);
      for (std::size_t n = 0; n < reference.tokens.size(); ++n) {
        if (alone.back().tokens.at(n) != reference.tokens[n] && reference.margins[n] < 1e-4) {
          ++counts.ties;  // rounding chose the other of two that are equal but for it
          break;
        }
        ASSERT_EQ(alone.back().tokens[n], reference.tokens[n]) << map << ", token " << n;
        ASSERT_NEAR(alone.back().log_probabilities[n], reference.log_probabilities[n], 1e-4) << map << ", token " << n;
        ++counts.tokens;
      }
    }
    for (int round = 0; round < 3; ++round) {
      EngineOptions options = random_options(random, exact);
      const std::int64_t one = bytes_of_one(built.model, options);
      options.kv_bytes = one * random.integer(1, 3);
      options.swap_bytes = random.flip() ? options.kv_bytes : 0;
      serve_at_random(random, built, options, requests, alone, counts, map);
    }
  }
  std::cout << counts.requests << " requests served, " << counts.tokens << " tokens held against the reference, "
            << counts.cancelled << " cancelled, " << counts.preemptions << " preemptions, " << counts.hits
            << " prefix hits, " << counts.ties << " ties\n";
  EXPECT_GT(counts.preemptions, 0);
  EXPECT_GT(counts.hits, 0);
  EXPECT_GT(counts.cancelled, 0);
}

// With a window of one token a prompt is computed as sequential semantics say. What settles only when its bits stand
// still has these bits, whatever the window, the grid and the guess.
TEST(Engine, AtToleranceZeroNoWindowChangesABit) {
  test::Random random;
  for (const std::string& map : maps_for(random)) {
    test::EngineModel built(small(map, 5, random.integer(0, 2) == 0), random);
    Request request =
        random_request(random, random.tokens(100, built.model.config().vocab), built.model.config().vocab);
    EngineOptions sequential = exact_options(random);
    sequential.window = 1;
    Engine by_one(built.model, sequential);
    const test::Answer wanted = test::answer_of(by_one, request);
    for (const StartingGuess guess : {StartingGuess::kProjection, StartingGuess::kZeros}) {
      EngineOptions options = exact_options(random);
      options.guess = guess;
      Engine engine(built.model, options);
      const test::Answer got = test::answer_of(engine, request);
      EXPECT_EQ(got.tokens, wanted.tokens) << map;
      EXPECT_EQ(got.log_probabilities, wanted.log_probabilities) << map << ", window " << options.window;
    }
  }
}

TEST(Engine, InBf16AnAnswerHasTheSameBitsInAnyCompany) {
  test::Random random;
  Counts counts;
  for (const char* map : {"none", "sandwich-top:3", "pizza-top:3", "sandwich-middle:3", "lasagna-top:3", "yoco",
                          "0s_1s_2_2:0_2:0_2:1s", "0_4:0_2:4s_3:1_4_4:2"}) {
    test::EngineModel built(small(map), random, {.compute = DType::kBF16, .weights = WeightFormat::kBF16});
    EngineOptions options = exact_options(random);
    options.tolerance = 1e-3F;
    options.grid = 16;
    options.kv_format = KvFormat::kBF16;
    const std::vector<std::int32_t> common = random.tokens(80, built.model.config().vocab);
    std::vector<Request> requests;
    std::vector<test::Answer> alone;
    for (int i = 0; i < 12; ++i) {
      requests.push_back(random_request(random, common, built.model.config().vocab));
      Engine engine(built.model, options);
      alone.push_back(test::answer_of(engine, requests.back()));
    }
    for (int round = 0; round < 3; ++round) {
      EngineOptions shared = random_options(random, options);
      shared.reuse_generated = false;
      shared.prefix_cache = true;
      shared.kv_bytes = bytes_of_one(built.model, shared) * random.integer(1, 3);
      shared.swap_bytes = random.flip() ? shared.kv_bytes : 0;
      serve_at_random(random, built, shared, requests, alone, counts, map);
    }
  }
  EXPECT_GT(counts.hits, 0);
}

TEST(Engine, TextsOfOnePromptShareItsPages) {
  test::Random random;
  for (const char* map : {"none", "sandwich-top:3", "yoco"}) {
    test::EngineModel built(small(map), random);
    EngineOptions options = exact_options(random);
    options.max_sequences = 4;
    Request request;
    request.prompt = random.tokens(static_cast<std::size_t>(random.integer(1, 60)), built.model.config().vocab);
    request.max_new_tokens = 20;
    request.sampling = {.temperature = 1, .seed = random.seed()};
    request.alternatives = 2;
    request.n = 6;
    Engine engine(built.model, options);
    const RequestId id = engine.submit(request);
    test::Answers answers = test::run_to_end(engine);
    ASSERT_EQ(answers.size(), 6U);
    for (int choice = 0; choice < request.n; ++choice) {
      Request one = request;
      one.n = 1;
      one.sampling.seed = seed_of_choice(request.sampling.seed, choice);
      Engine single(built.model, options);
      const test::Answer alone = test::answer_of(single, one);
      const test::Answer& got = answers[{id, choice}];
      EXPECT_EQ(got.tokens, alone.tokens) << map << ", text " << choice;
      EXPECT_EQ(got.log_probabilities, alone.log_probabilities) << map << ", text " << choice;
    }
    for (const PageCounts& pages : engine.counts().pages) EXPECT_EQ(pages.held, 0) << map;
  }
}

TEST(Engine, PromptScoresAreThoseOfDecoding) {
  test::Random random;
  for (const char* map : {"none", "yoco", "sandwich-top:3", "pizza-middle:2"}) {
    test::EngineModel built(small(map), random);
    const std::int64_t vocab = built.model.config().vocab;
    Request scored;
    scored.prompt = random.tokens(70, vocab);
    scored.max_new_tokens = 0;
    scored.prompt_scores = PromptScores{.first = random.integer(1, 30), .alternatives = 3};
    Engine engine(built.model, exact_options(random));
    const test::Answer answer = test::answer_of(engine, scored);
    ASSERT_EQ(std::ssize(answer.prompt_scores), 70 - scored.prompt_scores->first) << map;
    Decoder decoder(built.trained, 1, 70);
    for (std::int64_t t = 0; t + 1 < 70; ++t) {
      const std::vector<std::int32_t> one = {scored.prompt[static_cast<std::size_t>(t)]};
      const auto logits = decoder.step(Tensor::of<std::int32_t>(built.allocator, {1}, one)).values<float>();
      if (t + 1 < scored.prompt_scores->first) continue;
      const std::int32_t target = scored.prompt[static_cast<std::size_t>(t) + 1];
      const TokenScore wanted = score_token(logits, target, 3);
      const TokenScore& got = answer.prompt_scores[static_cast<std::size_t>(t + 1 - scored.prompt_scores->first)];
      EXPECT_EQ(got.token, target);
      EXPECT_NEAR(got.log_probability, wanted.log_probability, 1e-4) << map << ", token " << t + 1;
      ASSERT_EQ(got.top.size(), 3U);
      EXPECT_NEAR(got.top.front().second, wanted.top.front().second, 1e-4) << map;
    }
  }
}

// Rows of logits come 64 at a time: a prompt whose last score is the last of such a block has one more row behind it.
TEST(Engine, APromptOfAnyLengthIsScored) {
  test::Random random;
  test::EngineModel built(small("none"), random);
  EngineOptions options;
  options.page_size = 16;
  options.grid = 64;
  Engine engine(built.model, options);
  for (const std::int64_t length : {2, 63, 64, 65, 66, 128, 129, 130}) {
    Request request;
    request.prompt = random.tokens(static_cast<std::size_t>(length), built.model.config().vocab);
    request.max_new_tokens = 0;
    request.prompt_scores = PromptScores{};
    EXPECT_EQ(std::ssize(test::answer_of(engine, request).prompt_scores), length - 1);
    // Nothing to score, and a token to generate.
    request.prompt_scores = PromptScores{.first = length + 5};
    request.max_new_tokens = 1;
    EXPECT_EQ(test::answer_of(engine, request).tokens.size(), 1U);
  }
}

TEST(Engine, ATextEndsWhereItsEndsOrLengthSay) {
  test::Random random;
  test::EngineModel built(small("sandwich-middle:3"), random);
  Request request;
  request.prompt = random.tokens(20, built.model.config().vocab);
  request.max_new_tokens = 15;
  request.sampling.temperature = 0;
  Engine engine(built.model, exact_options(random));
  const test::Answer whole = test::answer_of(engine, request);
  EXPECT_EQ(whole.finish, FinishReason::kLength);
  ASSERT_EQ(whole.tokens.size(), 15U);
  const std::int32_t end = whole.tokens[7];
  const auto first = std::ranges::find(whole.tokens, end) - whole.tokens.begin();
  request.ends = {end};
  const test::Answer ended = test::answer_of(engine, request);
  EXPECT_EQ(ended.finish, FinishReason::kStop);
  EXPECT_EQ(std::ssize(ended.tokens), first);
  ASSERT_TRUE(ended.end.has_value());
  EXPECT_EQ(ended.end->token, end);
  request.deadline = 1;
  const RequestId late = engine.submit(request);
  EXPECT_TRUE(engine.step(0).empty() || !engine.is_idle());
  FinishReason reason = FinishReason::kNone;
  for (const Event& event : engine.step(2)) {
    if (event.request == late) reason = event.finish;
  }
  EXPECT_EQ(reason, FinishReason::kDeadline);
  EXPECT_TRUE(engine.is_idle());
}

TEST(Engine, EveryTextOfARequestEndsThoughNoneHasBegun) {
  test::Random random;
  test::EngineModel built(small("sandwich-top:3"), random);
  Engine engine(built.model, exact_options(random));
  Request request;
  request.prompt = random.tokens(20, built.model.config().vocab);
  request.n = 3;
  const auto endings = [](const std::vector<Event>& events) {
    std::vector<std::pair<int, FinishReason>> found;
    for (const Event& event : events) found.emplace_back(event.choice, event.finish);
    return found;
  };
  using Endings = std::vector<std::pair<int, FinishReason>>;
  request.deadline = 0;
  engine.submit(request);
  const FinishReason late = FinishReason::kDeadline;
  EXPECT_EQ(endings(engine.step(1)), (Endings{{0, late}, {1, late}, {2, late}}));
  request.deadline.reset();
  request.max_new_tokens = 0;
  request.prompt_scores = PromptScores{};
  const RequestId scored = engine.submit(request);
  const test::Answers answers = test::run_to_end(engine);
  ASSERT_EQ(answers.size(), 3U);
  EXPECT_EQ(answers.at({scored, 0}).prompt_scores.size(), 19U);
  for (int choice = 0; choice < 3; ++choice) {
    EXPECT_EQ(answers.at({scored, choice}).finish, FinishReason::kLength);
    EXPECT_EQ(answers.at({scored, choice}).prompt_scores.empty(), choice > 0);
  }
}

TEST(Engine, WhatCannotRunIsRefusedBeforeItWaits) {
  test::Random random;
  test::EngineModel built(small("none"), random);
  Engine engine(built.model, exact_options(random));
  const auto refused = [&](Request request) { EXPECT_THROW(engine.submit(std::move(request)), InputError); };
  refused({.prompt = {}});
  refused({.prompt = {1, 2, 1000}});
  refused({.prompt = {-1}});
  refused({.prompt = random.tokens(kContext, 20)});
  refused({.prompt = {1}, .max_new_tokens = -1});
  refused({.prompt = {1}, .max_new_tokens = 0});
  refused({.prompt = {1}, .n = 0});
  refused({.prompt = {1}, .sampling = {.temperature = -1}});
  refused({.prompt = {1}, .sampling = {.logit_bias = {{1000, 1.0F}}}});
  EXPECT_TRUE(engine.is_idle());
}

}  // namespace
}  // namespace kvloom
