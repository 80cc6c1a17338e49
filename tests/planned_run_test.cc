// What `kvloom plan` says is what training does: where stages begin, and every byte that stages send.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <fmt/ranges.h>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/config.h"
#include "parallel/thread_ranks.h"
#include "tests/support/model_fixture.h"
#include "tests/support/random.h"
#include "tests/support/tiny_run.h"
#include "train/mesh_config.h"
#include "train/trainer.h"

namespace kvloom {
namespace {

using ::testing::HasSubstr;
using Words = std::vector<std::string>;

class Reports final : public TrainObserver {
 public:
  void on_start(const TrainStart& start) override { note = start.note; }
  void on_step(const StepReport& report) override {
    losses[report.step] = report.loss;
    sent.push_back(report.sent);
    peak_bytes = report.peak_bytes;
  }
  void on_evaluation(const EvaluationReport&) override {}
  void on_checkpoint(std::uint64_t, const std::string&) override {}

  std::string note;
  std::map<std::uint64_t, double> losses;
  std::vector<LinkBytes> sent;   // by step
  std::uint64_t peak_bytes = 0;  // of rank 0
};

// A run of thread ranks in this process; `overrides` name the mesh.
Reports train(const test::TinyRun& run, Words overrides, Resume resume = Resume::kNo,
              std::optional<std::uint64_t> stop_after = std::nullopt) {
  overrides.push_back("data.tokens=" + (run / "tokens.h5").string());
  const proto::RunConfig config = load_run_config(run / "run.pbtxt", overrides);
  const proto::MeshConfig& mesh = config.mesh();
  Reports reports;
  run_thread_ranks(static_cast<int>(mesh.data() * mesh.pipeline() * mesh.tensor()), [&](Communicator& world) {
    omp_set_num_threads(1);
    TrainerOptions options;
    options.resume = resume;
    options.stop_after = stop_after;
    options.observer = world.rank() == 0 ? &reports : nullptr;
    Trainer trainer(config, world, options);
    trainer.run();
  });
  return reports;
}

nlohmann::json plan(const test::TinyRun& run, const Words& overrides) {
  Words words = {"plan", "--config", "run.pbtxt", "--json"};
  for (const std::string& text : overrides) words.insert(words.end(), {"--set", text});
  const test::ProcessResult result = run.kvloom(words);
  EXPECT_EQ(result.status, 0) << result.error;
  return nlohmann::json::parse(result.output);
}

// Of all ranks in a step: the plan's is of one tensor rank of one data rank.
LinkBytes planned_bytes(const nlohmann::json& plan) {
  const std::int64_t copies = plan["mesh"]["data"].get<std::int64_t>() * plan["mesh"]["tensor"].get<std::int64_t>();
  LinkBytes all;
  for (const nlohmann::json& link : plan["links"]) {
    const nlohmann::json& bytes = link["bytes_per_step"];
    all.hidden += copies * bytes["hidden"].get<std::int64_t>();
    all.hidden_gradient += copies * bytes["hidden_gradient"].get<std::int64_t>();
    all.key_value += copies * bytes["key_value"].get<std::int64_t>();
    all.key_value_gradient += copies * bytes["key_value_gradient"].get<std::int64_t>();
    all.messages += copies * bytes["messages"].get<std::int64_t>();
  }
  return all;
}

std::string random_boundaries(test::Random& random, int layers, int stages) {
  std::vector<int> cuts;
  for (int layer = 1; layer < layers; ++layer) cuts.push_back(layer);
  std::ranges::shuffle(cuts, random.engine());
  cuts.resize(static_cast<std::size_t>(stages - 1));
  std::ranges::sort(cuts);
  return fmt::format("{}", fmt::join(cuts, ","));
}

Words random_mesh(test::Random& random, int layers) {
  const auto pipeline = static_cast<int>(random.integer(2, 3));
  const auto tensor = static_cast<int>(random.integer(1, 2));
  const auto data = tensor == 1 ? static_cast<int>(random.integer(1, 2)) : 1;
  const auto per_rank = static_cast<int>(random.integer(1, 2));
  Words words = {fmt::format("mesh.data={}", data),
                 fmt::format("mesh.pipeline={}", pipeline),
                 fmt::format("mesh.tensor={}", tensor),
                 fmt::format("mesh.sequence_parallel={}", random.flip()),
                 fmt::format("mesh.stages_per_rank={}", per_rank),
                 fmt::format("mesh.schedule={}", random.flip() ? "GPIPE" : "ONE_FORWARD_ONE_BACKWARD")};
  const auto cut = random.integer(0, 2);
  if (cut == 0) words.emplace_back("mesh.placement=EVEN");
  if (cut == 1) words.push_back("mesh.boundaries=" + random_boundaries(random, layers, pipeline * per_rank));
  return words;
}

TEST(PlannedRun, StagesSendEveryByteThatIsPlannedAndNoOther) {
  test::Random random;
  const test::TinyRun run;
  ASSERT_EQ(run.tokenized.status, 0) << run.tokenized.error;
  std::int64_t key_values = 0;
  for (int i = 0; i < 16 && !HasFailure(); ++i) {
    const std::string map =
        i < 9 ? test::nine_maps()[static_cast<std::size_t>(i)] + ":3" : test::random_map(random, 6, true);
    Words overrides = {"model.kv_map=" + map,
                       "model.layers=6",
                       "model.window=5",
                       "train.steps=2",
                       "train.evaluate_every=1",
                       "passes.without_gradient=1",
                       fmt::format("train.micro_batch={}", random.integer(1, 2)),
                       fmt::format("train.precision={}", random.flip() ? "F32" : "BF16"),
                       fmt::format("output.directory={}", (run / fmt::format("out{}", i)).string())};
    const Words mesh = random_mesh(random, 6);
    overrides.insert(overrides.end(), mesh.begin(), mesh.end());
    SCOPED_TRACE(fmt::format("{}", fmt::join(overrides, " ")));
    const LinkBytes planned = planned_bytes(plan(run, overrides));
    EXPECT_GT(planned.hidden, 0);
    key_values += planned.key_value;
    const Reports reports = train(run, overrides);
    ASSERT_EQ(reports.sent.size(), 2u);
    for (const LinkBytes& sent : reports.sent) {
      EXPECT_EQ(sent, planned) << fmt::format("hidden {} and {}, K/V {} and {}, messages {}", sent.hidden,
                                              sent.hidden_gradient, sent.key_value, sent.key_value_gradient,
                                              sent.messages);
    }
  }
  EXPECT_GT(key_values, 0);
}

// Large enough that weights and activations outweigh what a plan leaves out: hidden states on their way and the scratch
// of a layer and of the head.
Words larger_model(const test::TinyRun& run, const Words& more) {
  static int number = 0;
  Words overrides = {"mesh.data=1",
                     "model.layers=6",
                     "model.hidden=128",
                     "model.ffn=344",
                     "model.heads=8",
                     "model.kv_heads=4",
                     "model.vocab=512",
                     "model.context=64",
                     "train.micro_batch=4",
                     "train.global_batch=16",
                     "train.steps=1",
                     "train.evaluation_sequences=1",
                     fmt::format("output.directory={}", (run / fmt::format("larger{}", ++number)).string())};
  overrides.insert(overrides.end(), more.begin(), more.end());
  return overrides;
}

TEST(PlannedRun, MemoryIsWhatIsPlannedWithin15Percent) {
  const test::TinyRun run;
  for (const Words& more : std::vector<Words>{{"mesh.pipeline=1"},
                                              {"mesh.pipeline=2"},
                                              {"mesh.pipeline=2", "mesh.schedule=GPIPE"},
                                              {"mesh.pipeline=2", "train.recompute=FULL"},
                                              {"mesh.pipeline=2", "train.precision=BF16"},
                                              {"mesh.tensor=2", "mesh.sequence_parallel=true"},
                                              {"mesh.data=2", "mesh.shard_optimizer=true"}}) {
    const Words overrides = larger_model(run, more);
    SCOPED_TRACE(fmt::format("{}", fmt::join(more, " ")));
    const double planned = plan(run, overrides)["ranks"][0]["memory_bytes"]["total"];
    const double measured = static_cast<double>(train(run, overrides).peak_bytes);
    std::printf("%s: measured / planned %.3f\n", fmt::format("{}", fmt::join(more, " ")).c_str(), measured / planned);
    EXPECT_GT(measured, 0.95 * planned);
    EXPECT_LT(measured, 1.15 * planned);
  }
}

// Whatever their number, the passes before the one that is read are gone.
TEST(PlannedRun, PassesWithoutGradientTakeNoMemoryOfTheirOwn) {
  const test::TinyRun run;
  for (const char* ranks : {"mesh.pipeline=1", "mesh.pipeline=2"}) {
    const auto peak_with = [&](const char* passes) {
      return static_cast<double>(train(run, larger_model(run, {ranks, passes, "train.recompute=FULL"})).peak_bytes);
    };
    // Ranks run as they please, and may hold a message more at their peak; five passes more are far above that.
    EXPECT_LT(peak_with("passes.without_gradient=7"), 1.02 * peak_with("passes.without_gradient=2")) << ranks;
  }
}

TEST(PlannedRun, LasagnaCutAtGroupBordersSendsNoKeyValues) {
  const test::TinyRun run;
  for (const auto& [map, boundaries] : std::vector<std::pair<std::string, std::string>>{
           {"lasagna-bottom:3", "2,4"}, {"lasagna-middle:3", "1,4"}, {"lasagna-top:3", "1,4"}}) {
    const Words overrides = {"model.kv_map=" + map,
                             "model.layers=" + std::string(map == "lasagna-bottom:3" ? "6" : "7"),
                             "mesh.pipeline=3",
                             "mesh.boundaries=" + boundaries,
                             "mesh.data=1",
                             "train.steps=1",
                             "output.directory=" + (run / map).string()};
    const Reports reports = train(run, overrides);
    ASSERT_EQ(reports.sent.size(), 1u);
    EXPECT_GT(reports.sent[0].hidden, 0) << map;
    EXPECT_GT(reports.sent[0].hidden_gradient, 0) << map;
    EXPECT_EQ(reports.sent[0].key_value, 0) << map;
    EXPECT_EQ(reports.sent[0].key_value_gradient, 0) << map;
  }
}

TEST(PlannedRun, TheLogNamesTheStagesThatThePlanShows) {
  const test::TinyRun run;
  // A head that weighs as much as layers.
  const Words overrides = {"model.layers=6",
                           "model.kv_map=none",
                           "model.vocab=1024",
                           "mesh.pipeline=2",
                           "mesh.data=1",
                           "train.steps=1",
                           "output.directory=" + (run / "auto").string()};
  const nlohmann::json planned = plan(run, overrides);
  EXPECT_NE(planned["boundaries"], planned["even"]["boundaries"]);
  const Reports reports = train(run, overrides);
  EXPECT_THAT(reports.note, HasSubstr(fmt::format("stages begin at layers 0,{} (auto, predicted ",
                                                  planned["boundaries"].get<std::string>())));
  Words given = overrides;
  given.back() = "output.directory=" + (run / "given").string();
  given.emplace_back("mesh.boundaries=2");
  EXPECT_THAT(train(run, given).note, HasSubstr("stages begin at layers 0,2"));
  given.back() = "mesh.pipeline=1";
  EXPECT_EQ(train(run, given, Resume::kAuto).note.find("stages"), std::string::npos);
}

TEST(PlannedRun, ARunGoesOnUnderAnyPlacement) {
  const test::TinyRun run;
  const auto directory = [&](const char* name) { return "output.directory=" + (run / name).string(); };
  const Words common = {"model.layers=6", "mesh.data=1", "train.steps=12"};
  const auto with = [&](Words words) {
    words.insert(words.end(), common.begin(), common.end());
    return words;
  };
  const std::map<std::uint64_t, double> whole = train(run, with({directory("whole")})).losses;
  const std::vector<Words> parts = {{"mesh.pipeline=2", "mesh.placement=EVEN"},
                                    {"mesh.pipeline=2", "mesh.placement=AUTO", "mesh.devices=H100"},
                                    {"mesh.pipeline=2", "mesh.stages_per_rank=2", "mesh.boundaries=1,2,5"}};
  std::map<std::uint64_t, double> losses;
  for (std::size_t part = 0; part < parts.size(); ++part) {
    Words words = parts[part];
    words.push_back(directory("parts"));
    const Reports reports = train(run, with(words), Resume::kAuto, 4 * (part + 1));
    ASSERT_EQ(reports.losses.size(), 4u);
    losses.insert(reports.losses.begin(), reports.losses.end());
  }
  ASSERT_EQ(losses.size(), 12u);
  for (const auto& [step, loss] : losses) EXPECT_NEAR(loss, whole.at(step), 1e-4 * loss) << "step " << step;
}

// Equal bits: the layout is part of what a run repeats.
TEST(PlannedRun, PlacementIsTheSameEveryTime) {
  test::Random random;
  for (int i = 0; i < 5; ++i) {
    const proto::RunConfig config =
        parse_run_config("run",
                         "model { layers: 12 hidden: 256 ffn: 688 heads: 8 kv_heads: 4 vocab: 8192 context: 256 }\n"
                         "mesh { pipeline: 3 }",
                         Words{"model.kv_map=" + test::random_map(random, 12, false)});
    const StepCounter first(step_shape_of(config, 1));
    const StepCounter second(step_shape_of(config, 1));
    const PredictedStep one = plan_step(config, first);
    const PredictedStep other = plan_step(config, second);
    EXPECT_EQ(one.layout, other.layout);
    EXPECT_EQ(one.schedule.ranks, other.schedule.ranks);
  }
}

}  // namespace
}  // namespace kvloom
