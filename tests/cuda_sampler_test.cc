// Sampling on a GPU against the same on the host, which computes in doubles. Run with the kernel compiled for the host
// as well (simt_cuda_sampler_test).
#include <limits>

#include "infer/sampler.h"
#include "kernels/random.h"
#include "kernels/sample.h"
#include "tests/support/gpu.h"
#include "tests/support/random.h"

namespace kvloom {
namespace {

using test::Random;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

class CudaSampler : public test::GpuTest {
 protected:
  // Goes on for `steps` tokens with fresh logits each time, and expects the host's choices.
  template <typename Logits>
  void expect_the_hosts_choices(const SamplingParameters& parameters, std::int64_t vocab, int steps, Random& random,
                                const Logits& logits_of) {
    std::vector<std::int32_t> history =
        random.tokens(static_cast<std::size_t>(random.integer(0, 5)), std::min<std::int64_t>(vocab, 20));
    TokenSampler sampler(allocator(), vocab, parameters, history);
    for (int step = 0; step < steps; ++step) {
      const std::vector<float> logits = logits_of();
      const std::int32_t expected = sample_token(logits, {history}, parameters, history.size());
      const TokenSampler::Choice choice = sampler.next(Tensor::of<float>(allocator(), {1, vocab}, logits));
      ASSERT_EQ(choice.token, expected) << "temperature " << parameters.temperature << " top_k " << parameters.top_k
                                        << " top_p " << parameters.top_p << " min_p " << parameters.min_p << " penalty "
                                        << parameters.repetition_penalty << " vocab " << vocab << " step " << step;
      EXPECT_EQ(choice.where.values<std::int32_t>(), std::vector<std::int32_t>{expected});
      history.push_back(expected);
    }
  }

  std::vector<std::int32_t> choose(const std::vector<float>& logits, std::int64_t rows,
                                   std::vector<SampleRow> rows_of) {
    const std::int64_t vocab = std::ssize(logits) / rows;
    const Tensor where = Tensor::of<float>(allocator(), {rows, vocab}, logits);
    std::vector<std::uint8_t> bytes(rows_of.size() * sizeof(SampleRow));
    std::memcpy(bytes.data(), rows_of.data(), bytes.size());
    Tensor choices = Tensor::of<std::uint8_t>(allocator(), {std::ssize(bytes)}, bytes);
    Tensor seen = Tensor::zeros(allocator(), {rows, vocab}, DType::kU8);
    Tensor tokens = Tensor::empty(allocator(), {rows}, DType::kI32);
    cuda::run(SampleTokens{where.as<float>().data(), static_cast<SampleRow*>(choices.data()),
                           seen.as<std::uint8_t>().data(), tokens.as<std::int32_t>().data(), rows, vocab},
              queue());
    return tokens.values<std::int32_t>();
  }
};

SamplingParameters random_parameters(Random& random, std::int64_t vocab) {
  SamplingParameters parameters{.temperature = static_cast<float>(random.real(0.2, 2)), .seed = random.seed()};
  if (random.flip()) parameters.top_k = random.integer(1, vocab + 3);
  if (random.flip()) parameters.top_p = static_cast<float>(random.real(0.01, 1));
  if (random.flip()) parameters.min_p = static_cast<float>(random.real(0, 0.5));
  if (random.flip()) parameters.repetition_penalty = static_cast<float>(random.real(0.5, 2));
  if (random.integer(0, 9) == 0) parameters.temperature = 0;
  return parameters;
}

TEST_F(CudaSampler, ChoosesTheHostsTokensWhateverIsAsked) {
  Random random;
  for (int repeat = 0; repeat < 12; ++repeat) {
    const std::int64_t vocab = random.flip() ? random.integer(1, 40) : random.integer(500, 3000);
    expect_the_hosts_choices(random_parameters(random, vocab), vocab, 3, random,
                             [&] { return random.normals(static_cast<std::size_t>(vocab), random.real(0.1, 6)); });
  }
}

TEST_F(CudaSampler, AmongEqualsTheLowestIdsStay) {
  Random random;
  for (int repeat = 0; repeat < 12; ++repeat) {
    const std::int64_t vocab = random.integer(2, 700);
    SamplingParameters parameters = random_parameters(random, vocab);
    // Weights that are powers of two add up without rounding, on the host and here.
    if (parameters.temperature > 0) parameters.temperature = static_cast<float>(1 / std::log(2.0));
    expect_the_hosts_choices(parameters, vocab, 2, random, [&] {
      std::vector<float> logits(static_cast<std::size_t>(vocab));
      for (float& logit : logits)
        logit = random.integer(0, 5) == 0 ? -kInfinity : static_cast<float>(random.integer(0, 2));
      logits[0] = random.flip() ? 0.0f : -0.0f;
      return logits;
    });
  }
}

// More of them than are compared one by one.
TEST_F(CudaSampler, AmongHundredsOfEqualsTheLowestIdsStay) {
  Random random;
  for (int repeat = 0; repeat < 8; ++repeat) {
    const std::int64_t vocab = random.integer(1500, 3000);
    const std::int64_t levels = random.integer(1, 2);
    SamplingParameters parameters{.temperature = static_cast<float>(1 / std::log(2.0)), .seed = random.seed()};
    if (repeat % 2 == 0) {
      parameters.top_k = random.integer(1, vocab);
    } else {
      parameters.top_p = static_cast<float>(random.real(0.05, 0.95));
    }
    // The last one that stays is drawn as often as any: a cut in another place shows.
    expect_the_hosts_choices(parameters, vocab, 4, random, [&] {
      std::vector<float> logits(static_cast<std::size_t>(vocab));
      for (float& logit : logits) logit = static_cast<float>(random.integer(1, levels));
      return logits;
    });
  }
}

TEST_F(CudaSampler, EveryRowIsSampledByItsOwnWishes) {
  Random random;
  constexpr std::int64_t kRows = 5;
  constexpr std::int64_t kVocab = 600;
  const std::vector<float> logits = random.normals(kRows * kVocab, 2);
  std::vector<SampleRow> rows;
  std::vector<std::int32_t> expected;
  for (std::int64_t row = 0; row < kRows; ++row) {
    SamplingParameters p = random_parameters(random, kVocab);
    p.repetition_penalty = 1;
    const auto position = static_cast<std::uint64_t>(random.integer(0, 1000));
    rows.push_back({p.seed, position, p.top_k, p.temperature, p.top_p, p.min_p, p.repetition_penalty});
    expected.push_back(
        sample_token(std::span(logits).subspan(static_cast<std::size_t>(row * kVocab), kVocab), {}, p, position));
  }
  EXPECT_EQ(choose(logits, kRows, rows), expected);
}

TEST_F(CudaSampler, FrequenciesFollowTheSoftmax) {
  Random random;
  constexpr std::int64_t kDraws = 2000;
  std::vector<SampleRow> rows;
  std::vector<float> logits;
  for (std::uint64_t i = 0; i < kDraws; ++i) {
    rows.push_back({.seed = random.seed(), .position = i});
    for (const float logit : {0.0f, 1.0f, -1.0f}) logits.push_back(logit);
  }
  std::vector<double> counts(3, 0);
  for (const std::int32_t token : choose(logits, kDraws, rows)) ++counts.at(static_cast<std::size_t>(token));
  const double total = 1 + std::exp(1) + std::exp(-1);
  const std::vector<double> p = {1 / total, std::exp(1) / total, std::exp(-1) / total};
  for (std::size_t t = 0; t < p.size(); ++t) {
    EXPECT_NEAR(counts[t], kDraws * p[t], 6 * std::sqrt(kDraws * p[t] * (1 - p[t]))) << "token " << t;
  }
}

TEST_F(CudaSampler, BrokenLogitsAreNamed) {
  EXPECT_EQ(choose({0, NAN, kInfinity, 1}, 1, {{}}), std::vector<std::int32_t>{-2});
  EXPECT_EQ(choose({0, 1, kInfinity, NAN}, 1, {{}}), std::vector<std::int32_t>{-3});
  EXPECT_EQ(choose({-kInfinity, -kInfinity}, 1, {{}}), std::vector<std::int32_t>{-3});
  TokenSampler sampler(allocator(), 2, {}, {});
  try {
    sampler.next(Tensor::of<float>(allocator(), {1, 2}, std::vector<float>{0, NAN}));
    ADD_FAILURE() << "NaN was sampled";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "sampling: the logit of token 1 is nan; the model's output is broken");
  }
  EXPECT_THROW(TokenSampler(allocator(), 2, {}, std::vector<std::int32_t>{2}), Error);
}

}  // namespace
}  // namespace kvloom
