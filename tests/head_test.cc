// The head and its loss when tensor ranks share the vocabulary.
#include "core/head.h"

#include <gtest/gtest.h>

#include <cmath>

#include "parallel/tensor_ranks.h"
#include "parallel/thread_ranks.h"
#include "tests/support/model_fixture.h"

namespace kvloom {
namespace {

// One more than ranks divide, and so large that one rank's part allows fewer rows at a time than the other's.
constexpr std::int64_t kVocab = 65537;
constexpr std::int64_t kRows = 300;

TEST(Head, RanksWhosePartsOfTheVocabularyDifferAgreeWithOne) {
  test::Random random;
  proto::ModelConfig message = test::small_model(2, "none", 0);
  message.set_vocab(kVocab);
  message.set_hidden(8);
  const ModelConfig config = ModelConfig::from_proto(message);
  const std::vector<float> hidden = random.normals(static_cast<std::size_t>(kRows * config.hidden));
  const std::vector<std::int32_t> targets = random.tokens(kRows, kVocab);
  const auto run = [&](const ModelShard& shard, TensorGroup* tensor, Allocator& allocator) {
    Model model(config, shard, DType::kF32, allocator);
    model.initialize(random.seed());
    ModelGradients gradients(model);
    const Tensor states = Tensor::of(allocator, {kRows, config.hidden}, std::span<const float>(hidden));
    const Tensor wanted = Tensor::of(allocator, {kRows}, std::span<const std::int32_t>(targets));
    const HeadResult result = head_loss_and_gradient(model, states, wanted, 1.0f, gradients, tensor);
    EXPECT_EQ(head_losses(model, states, wanted, tensor).count(), kRows);
    const auto values = result.grad_hidden.as<float>();
    return std::pair(sum_of_losses(result.losses), std::vector<float>(values.begin(), values.end()));
  };

  CachingCpuAllocator allocator;
  const auto [loss, gradient] = run(ModelShard::whole(config), nullptr, allocator);
  run_thread_ranks(2, [&, &loss = loss, &gradient = gradient](Communicator& world) {
    CachingCpuAllocator own;
    TensorRanks tensor(world, SequenceParallel::kNo, own);
    ModelShard shard = ModelShard::whole(config);
    shard.tensor_rank = world.rank();
    shard.tensor_size = world.size();
    const auto [shared_loss, shared_gradient] = run(shard, &tensor, own);
    EXPECT_NEAR(shared_loss, loss, 1e-5 * loss);
    ASSERT_EQ(shared_gradient.size(), gradient.size());
    for (std::size_t i = 0; i < gradient.size(); ++i) EXPECT_NEAR(shared_gradient[i], gradient[i], 1e-5) << i;
  });
}

// A row's logits may all be anything larger: their differences alone make its loss.
TEST(Head, RanksThatShareTheVocabularyFindTheLossOfLogitsAHundredHigher) {
  test::Random random;
  proto::ModelConfig message = test::small_model(1, "none");
  message.set_vocab(37);
  const ModelConfig config = ModelConfig::from_proto(message);
  const std::vector<float> hidden = random.normals(static_cast<std::size_t>(20 * config.hidden));
  const std::vector<std::int32_t> targets = random.tokens(20, 37);
  const std::uint64_t seed = random.seed();
  // With every token's weight of the first column `more`, a row's logits are all higher by a multiple of it.
  const auto losses_with = [&](const ModelShard& shard, TensorGroup* tensor, Allocator& allocator, float more) {
    Model model(config, shard, DType::kF32, allocator);
    model.initialize(seed);
    Tensor head =
        model.master().view(model.layout().at("lm_head.weight").offset, {shard.vocab(config).size(), config.hidden});
    const auto weights = head.as<float>();
    for (std::size_t at = 0; at < weights.size(); at += static_cast<std::size_t>(config.hidden)) weights[at] = more;
    model.refresh();
    const Tensor states = Tensor::of(allocator, {20, config.hidden}, std::span<const float>(hidden));
    const Tensor wanted = Tensor::of(allocator, {20}, std::span<const std::int32_t>(targets));
    return head_losses(model, states, wanted, tensor).values<float>();
  };
  CachingCpuAllocator allocator;
  const std::vector<float> plain = losses_with(ModelShard::whole(config), nullptr, allocator, 0);
  for (const int ranks : {2, 4}) {
    run_thread_ranks(ranks, [&](Communicator& world) {
      CachingCpuAllocator own;
      TensorRanks tensor(world, SequenceParallel::kNo, own);
      ModelShard shard = ModelShard::whole(config);
      shard.tensor_rank = world.rank();
      shard.tensor_size = world.size();
      for (const float more : {0.0f, 100.0f, -100.0f}) {
        const std::vector<float> higher = losses_with(shard, &tensor, own, more);
        ASSERT_EQ(higher.size(), plain.size());
        for (std::size_t row = 0; row < plain.size(); ++row) EXPECT_NEAR(higher[row], plain[row], 1e-3) << more;
      }
    });
  }
}

// However close another one comes; an equal one does not count against it.
TEST(Head, ATargetIsGreedyWhereNoLogitIsLarger) {
  CachingCpuAllocator allocator;
  const float one_more = std::nextafter(1.0f, 2.0f);
  const std::vector<float> logits = {1, one_more, -3, one_more, 1, -3, 1, 1, 0.5f};
  const Tensor rows = Tensor::of(allocator, {3, 3}, std::span<const float>(logits));
  const std::vector<std::int32_t> targets = {0, 0, 1};
  const auto scores =
      target_scores(rows, Tensor::of(allocator, {3}, std::span<const std::int32_t>(targets)), allocator);
  ASSERT_EQ(scores.size(), 3u);
  EXPECT_FALSE(scores[0].greedy);
  EXPECT_TRUE(scores[1].greedy);
  EXPECT_TRUE(scores[2].greedy);
}

}  // namespace
}  // namespace kvloom
