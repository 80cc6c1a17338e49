// Every mesh trains the same model: losses and gradients of tensor and pipeline ranks (threads) against one rank.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <mutex>
#include <set>

#include "core/model.h"
#include "core/training_pass.h"
#include "parallel/mesh_ranks.h"
#include "parallel/pipeline.h"
#include "parallel/replica_gradients.h"
#include "parallel/tensor_ranks.h"
#include "parallel/thread_ranks.h"
#include "tests/support/model_fixture.h"

namespace kvloom {
namespace {

constexpr Passes kPasses{.without_gradient = 2, .with_gradient = 2};
constexpr std::int64_t kSequences = 2;
constexpr std::int64_t kPositions = 8;

// A model, a few micro-batches, and what one rank makes of them.
struct Problem {
  Problem(const proto::ModelConfig& message, int micro_batches, test::Random& random)
      : config(ModelConfig::from_proto(message)), model(config, DType::kF32, allocator), gradients(model) {
    model.initialize(random.seed());
    test::disturb_vectors(model, random);
    TrainingPass pass(model, kPasses, kPositions, Recompute::kNone);
    for (int i = 0; i < micro_batches; ++i) {
      const auto count = static_cast<std::size_t>(kSequences * kPositions);
      tokens.push_back(random.tokens(count, config.vocab));
      targets.push_back(random.tokens(count, config.vocab));
      loss += pass.run(make_token_batch(model, tokens.back(), targets.back(), kSequences), scale(), gradients);
    }
    evaluation_loss = 0;
    for (const TokenBatch& batch : batches(model)) {
      for (const float value : parallel_losses(model, kPasses, batch).as<float>()) evaluation_loss += value;
    }
  }

  float scale() const { return 0.01f; }
  std::vector<TokenBatch> batches(const Model& of) const {
    std::vector<TokenBatch> result;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      result.push_back(make_token_batch(of, tokens[i], targets[i], kSequences));
    }
    return result;
  }

  CachingCpuAllocator allocator;
  ModelConfig config;
  Model model;
  ModelGradients gradients;
  std::vector<std::vector<std::int32_t>> tokens;
  std::vector<std::vector<std::int32_t>> targets;
  double loss = 0;
  double evaluation_loss = 0;
};

// Copies a shard's part of a whole model's flat buffer, parameter by parameter, to `part`.
void copy_part(const Model& whole, const Tensor& flat, const Model& shard, std::span<float> part) {
  for (const Parameter& parameter : shard.layout().all()) {
    const Parameter& global = whole.layout().at(parameter.name);
    const std::int64_t columns = parameter.shape.back();
    const std::int64_t rows = element_count(parameter.shape) / columns;
    const std::int64_t first_row = parameter.shape.size() == 1 ? 0 : parameter.global_offset.front();
    for (std::int64_t row = 0; row < rows; ++row) {
      const auto from =
          flat.as<float>().subspan(static_cast<std::size_t>(global.offset + (first_row + row) * global.shape.back() +
                                                            parameter.global_offset.back()),
                                   static_cast<std::size_t>(columns));
      std::ranges::copy(from, part.begin() + parameter.offset + row * columns);
    }
  }
}

struct Setting {
  Mesh mesh;
  StageLayout layout;
  SequenceParallel sequence_parallel = SequenceParallel::kNo;
  SchedulePolicy policy = SchedulePolicy::kOneForwardOneBackward;
  Recompute recompute = Recompute::kNone;

  std::string text() const {
    return fmt::format("pp {} tp {} stages {} sp {} policy {} recompute {}", mesh.pipeline, mesh.tensor,
                       layout.stages(), sequence_parallel == SequenceParallel::kYes, static_cast<int>(policy),
                       recompute == Recompute::kFull);
  }
};

// The largest difference within a tensor, relative to the largest gradient of that tensor; one that is small beside all
// others is bounded by them.
void expect_same_gradients(const Problem& problem, const Model& shard, const ModelGradients& gradients,
                           const std::string& what) {
  std::vector<float> expected(static_cast<std::size_t>(shard.layout().count()));
  copy_part(problem.model, problem.gradients.flat, shard, expected);
  const auto actual = gradients.flat.as<float>();
  double largest = 0;
  for (const float value : problem.gradients.flat.as<float>()) largest = std::max(largest, std::fabs(double{value}));
  for (const Parameter& parameter : shard.layout().all()) {
    double difference = 0;
    double own_largest = 1e-3 * largest;
    for (std::int64_t i = 0; i < element_count(parameter.shape); ++i) {
      const auto at = static_cast<std::size_t>(parameter.offset + i);
      difference = std::max(difference, std::fabs(double{actual[at]} - double{expected[at]}));
      own_largest = std::max(own_largest, std::fabs(double{expected[at]}));
    }
    EXPECT_LE(difference, 1e-4 * own_largest) << what << ": " << parameter.name;
  }
}

// Gradients of parts as they were when the pipeline called them complete.
class CompleteParts {
 public:
  CompleteParts(const Model& model, const ModelGradients& gradients) : model_(model), gradients_(gradients) {}

  void note(int part) {
    EXPECT_NE(part, kEmbeddingPart);
    EXPECT_TRUE(noted_.insert(part).second) << "part " << part << " twice";
    for (const Parameter& parameter : model_.layout().all()) {
      if (parameter.part == part) values_.emplace_back(&parameter, values_of(parameter));
    }
  }

  // After backward: every part held here was told, and nothing was added to it since.
  void expect_final() const {
    for (const Parameter& parameter : model_.layout().all()) {
      EXPECT_TRUE(parameter.part == kEmbeddingPart || noted_.contains(parameter.part)) << parameter.name;
    }
    for (const auto& [parameter, values] : values_) EXPECT_EQ(values, values_of(*parameter)) << parameter->name;
  }

 private:
  std::vector<float> values_of(const Parameter& parameter) const {
    const Tensor view = gradients_.flat.view(parameter.offset, parameter.shape);
    return {view.as<float>().begin(), view.as<float>().end()};
  }

  const Model& model_;
  const ModelGradients& gradients_;
  std::set<int> noted_;
  std::vector<std::pair<const Parameter*, std::vector<float>>> values_;
};

void train_on_mesh(const Problem& problem, const Setting& setting) {
  double loss = 0;
  double evaluation_loss = 0;
  std::mutex mutex;
  run_thread_ranks(setting.mesh.size(), [&](Communicator& world) {
    MeshRanks ranks(world, setting.mesh);
    CachingCpuAllocator allocator;
    Model model(problem.config,
                pipeline_shard(setting.layout, ranks.place().pipeline, ranks.place().tensor, setting.mesh.tensor),
                DType::kF32, allocator);
    copy_part(problem.model, problem.model.master(), model, model.master().as<float>());
    TensorRanks tensor(ranks.tensor(), setting.sequence_parallel, allocator);
    TensorGroup* group = setting.mesh.tensor > 1 ? &tensor : nullptr;
    PipelineOptions options{.passes = kPasses,
                            .layout = setting.layout,
                            .policy = setting.policy,
                            .recompute = setting.recompute,
                            .sequences = kSequences,
                            .positions = kPositions};
    ModelGradients gradients(model);
    Pipeline pipeline(model, ranks.pipeline(), group, options);
    CompleteParts complete(model, gradients);
    std::vector<double> sums = {
        pipeline.train(problem.batches(model), problem.scale(), gradients, [&](int part) { complete.note(part); }), 0};
    complete.expect_final();
    ReplicaGradients(model, ranks, setting.sequence_parallel).sum(gradients);
    options.mode = PlanMode::kPrefill;
    sums[1] = Pipeline(model, ranks.pipeline(), group, options).evaluate(problem.batches(model));
    ranks.pipeline().all_reduce(std::span(sums));
    const std::lock_guard lock(mutex);
    expect_same_gradients(problem, model, gradients, setting.text());
    loss = sums[0];
    evaluation_loss = sums[1];
  });
  EXPECT_NEAR(loss, problem.loss, 1e-4 * problem.loss) << setting.text();
  EXPECT_NEAR(evaluation_loss, problem.evaluation_loss, 1e-4 * problem.evaluation_loss) << setting.text();
}

proto::ModelConfig model_of(const std::string& map, test::Random& random) {
  proto::ModelConfig config = test::small_model(8, map, 3);
  config.set_heads(8);
  config.set_kv_heads(static_cast<std::uint32_t>(1 << random.integer(0, 3)));
  config.set_head_dim(4);
  config.set_qkv_bias(random.flip());
  config.set_qk_norm(random.flip());
  config.set_tied_embeddings(random.flip());
  return config;
}

std::vector<std::string> maps_to_train(test::Random& random) {
  std::vector<std::string> maps;
  for (const std::string& name : test::nine_maps()) maps.push_back(name + ":3");
  maps.insert(maps.end(), {"none", "yoco", "0s_3_3s_3_5s_7_4_7"});
  for (int i = 0; i < 20; ++i) maps.push_back(test::random_map(random, 8, true));
  return maps;
}

class EveryMesh : public ::testing::TestWithParam<int> {};

TEST_P(EveryMesh, TrainsAsOneRank) {
  test::Random random;
  const int ranks = GetParam();
  int runs = 0;
  for (const std::string& map : maps_to_train(random)) {
    SCOPED_TRACE(map);
    const Problem problem(model_of(map, random), static_cast<int>(random.integer(1, 5)), random);
    for (int pipeline = 1; pipeline <= ranks; pipeline *= 2) {
      const Mesh mesh{.data = 1, .pipeline = pipeline, .tensor = ranks / pipeline};
      train_on_mesh(problem, {.mesh = mesh,
                              .layout = StageLayout::even(8, pipeline),
                              .sequence_parallel = random.flip() ? SequenceParallel::kYes : SequenceParallel::kNo,
                              .policy = random.flip() ? SchedulePolicy::kGPipe : SchedulePolicy::kOneForwardOneBackward,
                              .recompute = random.flip() ? Recompute::kFull : Recompute::kNone});
      ++runs;
      if (HasFailure()) return;
    }
  }
  std::printf("%d runs of %d ranks\n", runs, ranks);
}

INSTANTIATE_TEST_SUITE_P(Ranks, EveryMesh, ::testing::Values(1, 2, 4, 8));

// Every way to cut 8 layers into 2, 3 and 4 stages, and several stages a rank.
TEST(EveryCut, TrainsAsOneRank) {
  test::Random random;
  int runs = 0;
  for (const std::string map : {"sandwich-top:3", "lasagna-middle:3", "pizza-bottom:3", "0s_3_3s_3_5s_7_4_7"}) {
    SCOPED_TRACE(map);
    const Problem problem(model_of(map, random), 3, random);
    std::vector<StageLayout> layouts;
    for (int a = 1; a < 8; ++a) {
      layouts.push_back({2, {0, a, 8}});
      for (int b = a + 1; b < 8; ++b) {
        layouts.push_back({3, {0, a, b, 8}});
        for (int c = b + 1; c < 8; ++c) {
          layouts.push_back({4, {0, a, b, c, 8}});
          layouts.push_back({2, {0, a, b, c, 8}});
        }
      }
    }
    for (const StageLayout& layout : layouts) {
      train_on_mesh(problem,
                    {.mesh = {.data = 1, .pipeline = layout.ranks(), .tensor = 1},
                     .layout = layout,
                     .policy = random.flip() ? SchedulePolicy::kGPipe : SchedulePolicy::kOneForwardOneBackward});
      ++runs;
      if (HasFailure()) return;
    }
  }
  std::printf("%d cuts\n", runs);
}

}  // namespace
}  // namespace kvloom
