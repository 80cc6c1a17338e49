// What a pipeline tells whoever sums gradients while it runs: a part that it calls complete gets nothing more.
#include "parallel/pipeline.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <set>

#include "parallel/mesh_ranks.h"
#include "parallel/tensor_ranks.h"
#include "parallel/thread_ranks.h"
#include "tests/support/model_fixture.h"

namespace kvloom {
namespace {

// Gradients of parts as they were when the pipeline called them complete.
class CompleteParts {
 public:
  CompleteParts(const Model& model, const ModelGradients& gradients) : model_(model), gradients_(gradients) {}

  void note(int part, const std::string& what) {
    EXPECT_NE(part, kEmbeddingPart) << what;
    EXPECT_TRUE(noted_.insert(part).second) << "part " << part << " twice: " << what;
    for (const Parameter& parameter : model_.layout().all()) {
      if (parameter.part == part) values_.emplace_back(&parameter, values_of(parameter));
    }
  }

  // After backward: every part held here was told, and nothing was added to it since.
  void expect_final(const std::string& what) const {
    for (const Parameter& parameter : model_.layout().all()) {
      EXPECT_TRUE(parameter.part == kEmbeddingPart || noted_.contains(parameter.part))
          << parameter.name << ": " << what;
    }
    for (const auto& [parameter, values] : values_) {
      EXPECT_EQ(values, values_of(*parameter)) << parameter->name << ": " << what;
    }
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

struct Case {
  ModelConfig config;
  Mesh mesh;
  PipelineOptions options;
  SequenceParallel sequence_parallel;
  int micro_batches;
  std::string what;
};

void expect_complete_parts_final(const Case& given) {
  run_thread_ranks(given.mesh.size(), [&](Communicator& world) {
    omp_set_num_threads(1);
    MeshRanks ranks(world, given.mesh);
    CachingCpuAllocator allocator;
    const MeshPlace& place = ranks.place();
    Model model(given.config, pipeline_shard(given.options.layout, place.pipeline, place.tensor, given.mesh.tensor),
                DType::kF32, allocator);
    model.initialize(1);
    TensorRanks tensor(ranks.tensor(), given.sequence_parallel, allocator);
    ModelGradients gradients(model);
    CompleteParts complete(model, gradients);
    Pipeline pipeline(model, ranks.pipeline(), given.mesh.tensor > 1 ? &tensor : nullptr, given.options);
    const std::vector<std::int32_t> tokens = {1, 2, 3, 4};
    const std::vector<TokenBatch> batches(static_cast<std::size_t>(given.micro_batches),
                                          make_token_batch(model, tokens, tokens, 1));
    pipeline.train(batches, 1, gradients, [&](int part) { complete.note(part, given.what); });
    complete.expect_final(given.what);
  });
}

TEST(Pipeline, APartCalledCompleteGetsNoMoreGradient) {
  test::Random random;
  std::vector<std::string> maps;
  for (const std::string& name : test::nine_maps()) maps.push_back(name + ":3");
  maps.insert(maps.end(), {"none", "yoco"});
  for (int i = 0; i < 20; ++i) maps.push_back(test::random_map(random, 8, true));
  const std::vector<StageLayout> layouts = {StageLayout::even(8, 1), StageLayout::even(8, 2), StageLayout::even(8, 4),
                                            StageLayout::even(8, 2, 2), StageLayout(3, {0, 1, 4, 8})};
  for (const std::string& map : maps) {
    const StageLayout& layout = layouts[static_cast<std::size_t>(random.integer(0, std::ssize(layouts) - 1))];
    proto::ModelConfig model = test::small_model(8, map, 3);
    model.set_vocab(30);  // tensor ranks share it evenly
    model.set_tied_embeddings(random.flip());
    Case given{.config = ModelConfig::from_proto(model),
               .mesh = {1, layout.ranks(), random.flip() ? 2 : 1},
               .options = {.passes = {.without_gradient = 1, .with_gradient = 2},
                           .layout = layout,
                           .policy = random.flip() ? SchedulePolicy::kGPipe : SchedulePolicy::kOneForwardOneBackward,
                           .recompute = random.flip() ? Recompute::kFull : Recompute::kNone,
                           .sequences = 1,
                           .positions = 4},
               .sequence_parallel = random.flip() ? SequenceParallel::kYes : SequenceParallel::kNo,
               .micro_batches = static_cast<int>(random.integer(1, 5)),
               .what = {}};
    given.what =
        fmt::format("map {} seed {} pp {} tp {} stages {} micro-batches {}{}", map, random.seed(), layout.ranks(),
                    given.mesh.tensor, layout.stages(), given.micro_batches, model.tied_embeddings() ? " tied" : "");
    expect_complete_parts_final(given);
    if (HasFailure()) return;
  }
}

// So that its gradient can leave while backward goes on: whatever is below has yet to run.
TEST(Pipeline, APartIsCalledCompleteBeforeThePartsBelowIt) {
  test::Random random;
  CachingCpuAllocator allocator;
  constexpr int kLayers = 4;
  const ModelConfig config = ModelConfig::from_proto(test::small_model(kLayers, "none"));
  Model model(config, DType::kF32, allocator);
  model.initialize(random.seed());
  ModelGradients gradients(model);
  const auto alone = make_single_rank();
  Pipeline pipeline(model, *alone, nullptr, {.layout = StageLayout::even(kLayers, 1), .positions = 4});
  std::vector<TokenBatch> batches;
  for (int i = 0; i < 3; ++i) batches.push_back(make_token_batch(model, random.tokens(4, 29), random.tokens(4, 29), 1));
  const auto norms = [&] {
    std::vector<double> squares(kLayers + 1, 0.0);  // by part: the layers, then final norm and head
    for (const Parameter& parameter : model.layout().all()) {
      if (parameter.part == kEmbeddingPart) continue;
      for (const float value : gradients.flat.view(parameter.offset, parameter.shape).as<float>()) {
        squares[static_cast<std::size_t>(parameter.part)] += static_cast<double>(value) * static_cast<double>(value);
      }
    }
    return squares;
  };
  std::vector<std::pair<int, std::vector<double>>> told;
  pipeline.train(batches, 1, gradients, [&](int part) { told.emplace_back(part, norms()); });
  ASSERT_EQ(told.size(), kLayers + 1u);
  for (std::size_t i = 0; i < told.size(); ++i) {
    const auto& [part, squares] = told[i];
    EXPECT_EQ(part, kLayers - static_cast<int>(i)) << "from the head down";
    for (int below = 0; below < part; ++below) {
      EXPECT_NE(squares[static_cast<std::size_t>(below)], norms()[static_cast<std::size_t>(below)])
          << "layer " << below << " was done when part " << part << " was told";
    }
  }
}

}  // namespace
}  // namespace kvloom
