// The cross entropy on a GPU against the same on the CPU, which its own tests hold against doubles. Run with the
// kernels compiled for the host as well (simt_cuda_cross_entropy_test).
#include "kernels/cross_entropy.h"
#include "tests/support/same_as_cpu.h"

namespace kvloom {
namespace {

using test::expect_same;
using test::Mirror;
using test::Random;
using test::Rows;

template <typename T>
class CudaCrossEntropy : public test::GpuTest {};
TYPED_TEST_SUITE(CudaCrossEntropy, test::ComputeTypes);

template <typename Op>
void move_inputs(const Mirror& mirror, Op& op) {
  op.logits = mirror(op.logits);
  op.targets = mirror(op.targets);
  op.maximum = mirror(op.maximum);
  op.total = mirror(op.total);
  op.target_logit = mirror(op.target_logit);
}

TYPED_TEST(CudaCrossEntropy, CrossEntropyOfAShardIsTheCpus) {
  Random random;
  for (const std::int64_t vocab : {random.integer(1, 90), 8 * random.integer(10, 20), 8 * random.integer(300, 400)}) {
    const std::int64_t rows = random.integer(1, 7);
    const std::int64_t first = random.integer(0, 20);
    Rows<float> logits(rows, vocab);
    logits.randomise(random, random.real(0.1, 4));
    auto targets = random.tokens(static_cast<std::size_t>(rows), vocab + first + 5);
    targets[0] = kIgnoredTarget;
    std::vector<float> maximum(targets.size());
    auto total = maximum;
    auto target_logit = maximum;
    auto loss = maximum;
    auto wider = maximum;
    for (float& value : wider) value = static_cast<float>(random.real(5, 9));
    Rows<TypeParam> grad(rows, vocab);
    const Mirror mirror(this->allocator(), logits.data, targets, maximum, total, target_logit, loss, wider, grad.data);
    CrossEntropyStatistics statistics{logits.data.data(),  targets.data(), maximum.data(), total.data(),
                                      target_logit.data(), rows,           vocab,          first};
    CrossEntropy op{.logits = logits.data.data(),
                    .targets = targets.data(),
                    .maximum = wider.data(),
                    .total = total.data(),
                    .target_logit = target_logit.data(),
                    .loss = loss.data(),
                    .grad_logits = grad.data.data(),
                    .rows = rows,
                    .vocab = vocab,
                    .first_token = first,
                    .grad_scale = 0.3f,
                    .grad_dtype = DTypeOf<TypeParam>::value};
    cpu::run(statistics);
    cpu::run(RescaleTotals{total.data(), maximum.data(), wider.data(), rows});
    cpu::run(op);
    move_inputs(mirror, statistics);
    cuda::run(statistics, this->queue());
    const RescaleTotals rescale{mirror(total.data()), mirror(maximum.data()), mirror(wider.data()), rows};
    cuda::run(rescale, this->queue());
    move_inputs(mirror, op);
    op.loss = mirror(op.loss);
    op.grad_logits = mirror(op.grad_logits);
    cuda::run(op, this->queue());
    expect_same(mirror, maximum, "maximum");
    expect_same(mirror, total, "total");
    expect_same(mirror, target_logit, "target_logit");
    expect_same(mirror, loss, "loss", 1);
    expect_same(mirror, grad.data, "gradient", 0.3);
    EXPECT_EQ(mirror.now(loss)[0], 0);
    op.grad_logits = nullptr;
    cuda::run(op, this->queue());
    expect_same(mirror, loss, "loss alone", 1);
  }
}

// Rows of logits of which many are -infinity, as samplers and grammars leave them, and one that is not a number.
Rows<float> masked_logits(Random& random, std::int64_t vocab) {
  Rows<float> logits(7, vocab);
  logits.randomise(random, random.real(0.1, 4));
  const auto mask = [&](std::int64_t r, auto&& is_masked) {
    for (std::int64_t v = 0; v < vocab; ++v) {
      if (is_masked(v)) logits.at(r, v) = -std::numeric_limits<float>::infinity();
    }
  };
  const std::int64_t some = random.integer(0, vocab - 1);
  mask(0, [](std::int64_t v) { return v < 4; });
  mask(1, [&](std::int64_t) { return random.flip(); });
  mask(2, [&](std::int64_t v) { return v < some; });
  mask(3, [&](std::int64_t v) { return v != some; });
  mask(4, [](std::int64_t) { return true; });
  mask(5, [](std::int64_t) { return true; });
  logits.at(5, some) = Rows<float>::gap();
  logits.at(6, some) = Rows<float>::gap();
  return logits;
}

using CudaCrossEntropyStatistics = test::GpuTest;

TEST_F(CudaCrossEntropyStatistics, OfMaskedLogitsAndOfNotANumberAreTheCpus) {
  Random random;
  for (const std::int64_t vocab : {random.integer(1, 90), 4 * random.integer(10, 40), 4 * random.integer(600, 900)}) {
    const Rows<float> logits = masked_logits(random, vocab);
    const std::vector<std::int32_t> targets(static_cast<std::size_t>(logits.rows), kIgnoredTarget);
    std::vector<float> maximum(targets.size());
    auto total = maximum;
    auto target_logit = maximum;
    const Mirror mirror(allocator(), logits.data, targets, maximum, total, target_logit);
    CrossEntropyStatistics op{logits.data.data(),  targets.data(), maximum.data(), total.data(),
                              target_logit.data(), logits.rows,    vocab};
    cpu::run(op);
    move_inputs(mirror, op);
    cuda::run(op, queue());
    EXPECT_EQ(mirror.now(maximum), maximum);
    expect_same(mirror, total, "total");
    EXPECT_EQ(total[4], 0);
    EXPECT_TRUE(std::isnan(total[5]) && std::isnan(total[6]));
  }
}

}  // namespace
}  // namespace kvloom
