// Attention of sequences at positions of their own on the CPU, against double precision.
#include <gtest/gtest.h>

#include "tests/support/ragged_attention.h"

namespace kvloom {
namespace {

using test::RaggedAsk;
using test::RaggedAttention;
using test::Random;

constexpr auto kHere = [](auto* host) { return host; };

template <typename T>
class RaggedAttentionKernel : public ::testing::Test {
 protected:
  static constexpr double kBound = std::is_same_v<T, float> ? 2e-5 : 2e-2;
};
TYPED_TEST_SUITE(RaggedAttentionKernel, test::ComputeTypes);

std::vector<RaggedAsk> asks(Random& random) {
  std::vector<RaggedAsk> all;
  for (const std::int64_t head_dim : {7, 32, 64, 128}) {
    for (const std::int64_t group : {1, 2, 4, 8}) {
      for (const std::int64_t queries : {std::int64_t{1}, random.integer(2, 20), random.integer(60, 140)}) {
        const std::int64_t furthest = random.integer(1, queries == 1 ? 1200 : 200);
        all.push_back({queries, head_dim, furthest, group, random.integer(0, 9)});
      }
    }
  }
  return all;
}

TYPED_TEST(RaggedAttentionKernel, EachSequenceStandsWhereItsStartSays) {
  Random random;
  for (const RaggedAsk& ask : asks(random)) {
    RaggedAttention<TypeParam> problem(test::random_ragged_shape<TypeParam>(random, ask), ask.furthest, random);
    const reference::Attention want = problem.expected();
    cpu::run(problem.op(kHere));
    ASSERT_NO_FATAL_FAILURE(test::expect_answers(problem, want, this->kBound));
  }
}

TYPED_TEST(RaggedAttentionKernel, HasTheBitsOfEachSequenceAlone) {
  Random random;
  for (const RaggedAsk& ask : asks(random)) {
    RaggedAttention<TypeParam> problem(test::random_ragged_shape<TypeParam>(random, ask), ask.furthest, random);
    cpu::run(problem.op(kHere));
    const RaggedAttention<TypeParam> together = problem;
    for (std::int64_t b = 0; b < problem.shape.batch; ++b) {
      AttentionForward alone = problem.op(kHere);
      alone.starts = nullptr;
      alone.shape.batch = 1;
      alone.shape.first_position += problem.start(b);
      const std::int64_t row = b * problem.shape.queries;
      alone.query = &problem.query.at(row, 0);
      alone.key = &problem.key[problem.place(b, 0, 0)];
      alone.value = &problem.value[problem.place(b, 0, 0)];
      alone.output = &problem.output.at(row, 0);
      alone.log_sum_exp = &problem.log_sum_exp[test::area(row, problem.shape.heads)];
      cpu::run(alone);
    }
    ASSERT_EQ(problem.output.dense(), together.output.dense()) << problem.words();
    ASSERT_EQ(problem.log_sum_exp, together.log_sum_exp) << problem.words();
  }
}

TYPED_TEST(RaggedAttentionKernel, BitsDoNotDependOnThreads) {
  Random random;
  for (const RaggedAsk& ask : {RaggedAsk{1, 64, 1500, 4}, RaggedAsk{80, 64, 100, 2}}) {
    RaggedAttention<TypeParam> problem(test::random_ragged_shape<TypeParam>(random, ask), ask.furthest, random);
    test::expect_equal_bits_for_any_thread_count([&] {
      cpu::run(problem.op(kHere));
      return problem.output.data;
    });
  }
}

}  // namespace
}  // namespace kvloom
