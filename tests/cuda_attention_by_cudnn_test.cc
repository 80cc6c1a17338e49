// Attention by cuDNN against double precision. Run without a GPU as well, with plain loops in place of cuDNN's kernels
// (simt_cuda_attention_by_cudnn_test).
#include <gmock/gmock.h>

#include "kernels/attention_choice.h"
#include "tests/support/attention_problem.h"

namespace kvloom {
namespace {

using test::AttentionAsk;
using test::AttentionProblem;
using test::expect_attention;
using test::kAttentionBound;
using test::Random;
using test::random_attention_shape;
using test::words;

class CudaAttentionByCudnn : public test::GpuTest {
 protected:
  void SetUp() override {
    test::GpuTest::SetUp();
    if (IsSkipped()) return;
    try {
      cuda::choose_attention(queue(), AttentionChoice::kCudnn,
                             [this](const std::string& words) { said_.push_back(words); });
    } catch (const InputError& error) {
      GTEST_SKIP() << error.what();
    }
  }
  // Of a kind that cuDNN is asked about.
  static AttentionShape shape_for_cudnn(Random& random, std::int64_t queries) {
    const AttentionAsk ask{.queries = queries, .head_dim = random.flip() ? 64 : 128, .beyond = random.integer(0, 3)};
    AttentionShape shape = random_attention_shape<BFloat16>(random, ask);
    if (shape.window == 1) shape.window = 2;
    if (shape.visibility == Visibility::kUpward && random.flip()) shape.keys = ask.queries - 1;
    shape.key_batch_stride = shape.keys * shape.key_stride;
    return shape;
  }

  // Forward and backward, twice.
  void expect_agreement(Random& random, std::int64_t queries) {
    AttentionProblem<BFloat16> problem(shape_for_cudnn(random, queries), random);
    const test::AttentionAnswers want(problem);
    const AttentionProblem<BFloat16> given = problem;
    problem.run(allocator(), queue(), true);
    ASSERT_NO_FATAL_FAILURE(want.expect(problem, 1e-3));
    // The second time nothing is compared, and the bits are the same.
    AttentionProblem<BFloat16> again = given;
    again.run(allocator(), queue(), true);
    EXPECT_EQ(again.output.dense(), problem.output.dense());
    EXPECT_EQ(again.grad_query.dense(), problem.grad_query.dense());
    EXPECT_TRUE(test::equal_bits(again.grad_key, problem.grad_key));
    EXPECT_TRUE(test::equal_bits(again.grad_value, problem.grad_value));
    if (problem.shape.visibility != Visibility::kUpward) return;
    for (std::int64_t b = 0; b < problem.shape.batch; ++b) {
      for (std::int64_t i = 0; i < problem.width(); ++i) {
        ASSERT_EQ(problem.output(b * problem.shape.queries, i), 0.0);
        ASSERT_EQ(problem.grad_query(b * problem.shape.queries, i), 0.0);
      }
    }
  }

  std::vector<std::string> said_;
};

TEST_F(CudaAttentionByCudnn, AgreesWithDoublePrecisionForwardAndBackward) {
  Random random;
  for (int repeat = 0; repeat < 8; ++repeat) {
    ASSERT_NO_FATAL_FAILURE(expect_agreement(random, random.integer(16, 90)));
  }
  EXPECT_EQ(said_.size(), 1u) << said_.back();  // cuDNN took them all
}

// cuDNN may have no kernel for some of these; then ours answer.
TEST_F(CudaAttentionByCudnn, SequencesOfAFewTokensAgreeToo) {
  Random random;
  for (const std::int64_t queries : {2, 3, 7, 15}) {
    ASSERT_NO_FATAL_FAILURE(expect_agreement(random, queries));
  }
}

TEST_F(CudaAttentionByCudnn, WhatCudnnDoesNotTakeGoesToOurOwnKernelsAndIsSaidOnce) {
  Random random;
  for (int repeat = 0; repeat < 3; ++repeat) {
    AttentionProblem<float> problem(
        random_attention_shape<float>(random, {.queries = random.integer(2, 30), .head_dim = 64}), random);
    const reference::Attention want = problem.expected();
    problem.run(allocator(), queue(), true);
    ASSERT_NO_FATAL_FAILURE(
        expect_attention(problem.output.dense(), want.output, kAttentionBound<float>, words(problem.shape)));
  }
  EXPECT_EQ(said_.size(), 2u);
  EXPECT_THAT(said_.back(), ::testing::HasSubstr("bf16"));
}

}  // namespace
}  // namespace kvloom
