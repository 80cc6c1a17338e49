// Attention of sequences at positions of their own on a GPU, every way it goes there, against double precision. Run
// with the kernels compiled for the host as well (simt_cuda_ragged_attention_test).
#include <gtest/gtest.h>

#include "tests/support/gpu.h"
#include "tests/support/ragged_attention.h"

namespace kvloom {
namespace {

using test::Mirror;
using test::RaggedAsk;
using test::RaggedAttention;
using test::Random;

template <typename T>
class CudaRaggedAttention : public test::GpuTest {
 protected:
  static constexpr double kBound = std::is_same_v<T, float> ? 2e-5 : 2e-2;

  void run(RaggedAttention<T>& problem) {
    const Mirror mirror(allocator(), problem.starts, problem.query.data, problem.key, problem.value,
                        problem.output.data, problem.log_sum_exp);
    cuda::run(problem.op(mirror), queue());
    problem.output.data = mirror.now(problem.output.data);
    problem.log_sum_exp = mirror.now(problem.log_sum_exp);
  }
};
TYPED_TEST_SUITE(CudaRaggedAttention, test::ComputeTypes);

// One query goes by splits of the keys, bf16 with head_dim 64 and 128 by tensor cores, the rest by plain arithmetic.
std::vector<RaggedAsk> asks(Random& random) {
  std::vector<RaggedAsk> all;
  for (const std::int64_t group : {1, 2, 4, 8}) {
    for (const std::int64_t head_dim : {40, 64, 128}) {
      all.push_back({1, head_dim, random.integer(1, 700), group, 8 * random.integer(0, 1)});
    }
    all.push_back({random.integer(2, 100), random.flip() ? 64 : 128, random.integer(1, 150), group, 8});
    all.push_back({random.integer(2, 40), random.integer(1, 40), random.integer(1, 100), group, 1});
  }
  return all;
}

TYPED_TEST(CudaRaggedAttention, EachSequenceStandsWhereItsStartSays) {
  Random random;
  for (const RaggedAsk& ask : asks(random)) {
    RaggedAttention<TypeParam> problem(test::random_ragged_shape<TypeParam>(random, ask), ask.furthest, random);
    const reference::Attention want = problem.expected();
    this->run(problem);
    ASSERT_NO_FATAL_FAILURE(test::expect_answers(problem, want, this->kBound));
  }
}

// As when a step was captured for all that a cache may hold.
TYPED_TEST(CudaRaggedAttention, FewKeysOfManyThatMightBeAreFound) {
  Random random;
  for (const std::int64_t most : {500, 8000}) {
    AttentionShape shape = test::random_ragged_shape<TypeParam>(random, {1, 64, 300, 4});
    shape.keys = most;
    shape.key_batch_stride = most * shape.key_stride;
    RaggedAttention<TypeParam> problem(shape, 300, random);
    const reference::Attention want = problem.expected();
    this->run(problem);
    ASSERT_NO_FATAL_FAILURE(test::expect_answers(problem, want, this->kBound));
  }
}

}  // namespace
}  // namespace kvloom
