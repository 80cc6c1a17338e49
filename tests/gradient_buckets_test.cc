// Gradients of data ranks (threads), summed in buckets while parts of the model are still being computed.
#include "parallel/gradient_buckets.h"

#include <gtest/gtest.h>

#include <numeric>

#include "parallel/mesh_ranks.h"
#include "parallel/thread_ranks.h"
#include "tests/support/model_fixture.h"

namespace kvloom {
namespace {

constexpr int kLayers = 5;

struct Setting {
  int ranks;
  UpdateSharing sharing;
  std::int64_t bucket;
  std::vector<int> order;  // in which parts are complete
  std::uint64_t seed;
};

// Values for which the order of a sum matters.
std::vector<float> gradient_of(std::uint64_t seed, int rank, std::size_t count) {
  test::Random random(seed + static_cast<std::uint64_t>(rank));
  return random.normals(count);
}

void expect_sums(const Setting& setting, const std::vector<float>& expected, const ModelGradients& gradients,
                 const ElementRange& range) {
  const auto actual = gradients.flat.as<float>();
  for (std::int64_t i = range.begin; i < range.end; ++i) {
    const auto at = static_cast<std::size_t>(i);
    ASSERT_EQ(actual[at], expected[at]) << "element " << i << ", bucket " << setting.bucket;
  }
}

void run(const Setting& setting, const ModelConfig& config) {
  run_thread_ranks(setting.ranks, [&](Communicator& world) {
    MeshRanks ranks(world, {.data = setting.ranks, .pipeline = 1, .tensor = 1});
    CachingCpuAllocator allocator;
    Model model(config, DType::kF32, allocator);
    ModelGradients gradients(model);
    ReplicaGradients replicas(model, ranks, SequenceParallel::kNo);
    DataReplicas data(ranks.data(), setting.sharing);
    const auto count = static_cast<std::size_t>(model.layout().count());
    std::vector<float> expected(count, 0.0F);
    for (int rank = 0; rank < setting.ranks; ++rank) {
      const std::vector<float> values = gradient_of(setting.seed, rank, count);
      for (std::size_t i = 0; i < count; ++i) expected[i] = rank == 0 ? values[i] : expected[i] + values[i];
    }
    std::ranges::copy(gradient_of(setting.seed, world.rank(), count), gradients.flat.as<float>().begin());

    GradientBuckets buckets(model, replicas, data, gradients, setting.bucket);
    for (const int part : setting.order) buckets.complete(part);
    const bool all_told = setting.order.size() == kLayers + 1;
    if (setting.ranks > 1 && all_told && setting.bucket < 100) {
      EXPECT_GT(ranks.data().given_bytes(Collective::kAllReduce) + ranks.data().given_bytes(Collective::kReduce), 0)
          << "nothing was started before the end";
    }
    buckets.finish();
    expect_sums(setting, expected, gradients, data.updated_here(model.layout().count()));
  });
}

TEST(GradientBuckets, SumInOrderOfRankWhateverIsCompleteWhen) {
  test::Random random;
  for (int repeat = 0; repeat < 40; ++repeat) {
    proto::ModelConfig message = test::small_model(kLayers, test::random_map(random, kLayers, false), 0);
    message.set_tied_embeddings(random.flip());
    std::vector<int> order(kLayers + 1);
    std::iota(order.begin(), order.end(), 0);
    // Mostly as backward goes: from the top down.
    std::reverse(order.begin(), order.end());
    if (random.flip()) std::swap(order[0], order[static_cast<std::size_t>(random.integer(1, kLayers))]);
    if (random.flip()) order.resize(static_cast<std::size_t>(random.integer(0, kLayers)));
    run({.ranks = static_cast<int>(random.integer(1, 4)),
         .sharing = random.flip() ? UpdateSharing::kShare : UpdateSharing::kWhole,
         .bucket = random.flip() ? random.integer(1, 99) : random.integer(100, 100000),
         .order = order,
         .seed = random.seed() + static_cast<std::uint64_t>(repeat) * 100},
        ModelConfig::from_proto(message));
    if (::testing::Test::HasFailure()) return;
  }
}

TEST(GradientBuckets, APartThatIsCompleteTwiceIsRefused) {
  const auto single = make_single_rank();
  MeshRanks ranks(*single, {.data = 1, .pipeline = 1, .tensor = 1});
  CachingCpuAllocator allocator;
  Model model(ModelConfig::from_proto(test::small_model(2, "none", 0)), DType::kF32, allocator);
  ModelGradients gradients(model);
  ReplicaGradients replicas(model, ranks, SequenceParallel::kNo);
  DataReplicas data(ranks.data(), UpdateSharing::kWhole);
  GradientBuckets buckets(model, replicas, data, gradients);
  buckets.complete(1);
  EXPECT_THROW(buckets.complete(1), Error);
}

}  // namespace
}  // namespace kvloom
