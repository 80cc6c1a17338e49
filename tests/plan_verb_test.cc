// `kvloom plan` as a user runs it: what it prints is what the placement and the costs say, and mistakes end with
// status 2.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "core/config.h"
#include "tests/support/model_fixture.h"
#include "tests/support/random.h"
#include "tests/support/verb_test.h"
#include "train/mesh_config.h"

namespace kvloom {
namespace {

using test::Words;
using ::testing::HasSubstr;

class PlanVerb : public test::VerbTest {
 protected:
  PlanVerb() : VerbTest("plan") { folder().write("run.pbtxt", run_text()); }

  // With the folder's config, unless the words name one.
  test::ProcessResult run(const Words& words) override {
    Words all = words;
    if (std::ranges::find(words, "--config") == words.end()) all.insert(all.begin(), {"--config", "run.pbtxt"});
    return VerbTest::run(all);
  }

  proto::RunConfig config(const Words& overrides) { return load_run_config(folder() / "run.pbtxt", overrides); }

  static std::string run_text() {
    return "model { layers: 12 hidden: 512 ffn: 1376 heads: 8 kv_heads: 4 vocab: 8192 context: 256\n"
           "        kv_map: \"sandwich-top:3\" }\n"
           "passes { without_gradient: 3 with_gradient: 2 }\n"
           "train { global_batch: 16 micro_batch: 2 }\n";
  }
};

TEST_F(PlanVerb, JsonSaysWhatThePlacementSays) {
  test::Random random;
  for (int i = 0; i < 8 && !HasFailure(); ++i) {
    const std::string map =
        i < 4 ? test::nine_maps()[static_cast<std::size_t>(2 * i)] + ":4" : test::random_map(random, 12, false);
    const auto ranks = static_cast<int>(random.integer(2, 4));
    const auto tensor = static_cast<int>(random.integer(1, 2));
    SCOPED_TRACE(fmt::format("map {} pp {} tp {}", map, ranks, tensor));
    const Words common = {"model.kv_map=" + map, fmt::format("mesh.pipeline={}", ranks),
                          fmt::format("mesh.tensor={}", tensor)};
    Words words = {"--set", common[0], "--pp", std::to_string(ranks), "--tp", std::to_string(tensor)};
    const nlohmann::json said = json(words);

    const proto::RunConfig run = config(common);
    const StepCounter counter(step_shape_of(run, 1));
    const PredictedStep step = plan_step(run, counter);
    EXPECT_EQ(said["boundaries"], boundaries_text(step.layout));
    EXPECT_DOUBLE_EQ(said["seconds"], step.times.makespan);
    EXPECT_DOUBLE_EQ(said["idle_share"], step.times.idle_share());
    EXPECT_LE(said["seconds"], said["even"]["seconds"]);
    ASSERT_EQ(said["ranks"].size(), static_cast<std::size_t>(ranks));
    for (int rank = 0; rank < ranks; ++rank) {
      const auto at = static_cast<std::size_t>(rank);
      EXPECT_EQ(said["ranks"][at]["memory_bytes"]["total"], step.memory[at].total());
      EXPECT_DOUBLE_EQ(said["ranks"][at]["busy_seconds"], step.times.busy[at]);
    }
    for (const nlohmann::json& link : said["links"]) {
      const LinkBytes bytes = link_bytes(step.chain, step.costs, link["from"], link["to"]);
      EXPECT_EQ(link["bytes_per_micro_batch"]["hidden"], bytes.hidden);
      EXPECT_EQ(link["bytes_per_micro_batch"]["hidden_gradient"], bytes.hidden_gradient);
      EXPECT_EQ(link["bytes_per_micro_batch"]["key_value"], bytes.key_value);
      EXPECT_EQ(link["bytes_per_micro_batch"]["key_value_gradient"], bytes.key_value_gradient);
      EXPECT_EQ(link["bytes_per_step"]["key_value"], 8 * bytes.key_value);
    }
  }
}

// Chunks that are much shorter than a column count by what they fill together.
TEST_F(PlanVerb, TheTextOfTheScheduleWaitsAsMuchAsTheSchedule) {
  const Words words = {"--pp", "4", "--set", "train.global_batch=64", "--set", "train.micro_batch=1"};
  const nlohmann::json said = json(words);
  std::istringstream lines(printed(words));
  std::vector<std::string> rows;
  for (std::string line; std::getline(lines, line);) {
    const std::size_t bar = line.find('|');
    if (line.find("ward") == line.npos || bar == line.npos || !line.ends_with('|')) continue;
    rows.push_back(line.substr(bar + 1, line.size() - bar - 2));
  }
  ASSERT_EQ(rows.size(), 8u);
  for (std::size_t rank = 0; rank < 4; ++rank) {
    int waits = 0;
    for (std::size_t column = 0; column < rows[2 * rank].size(); ++column) {
      EXPECT_TRUE(rows[2 * rank][column] == '.' || rows[2 * rank + 1][column] == '.') << "one thing at a time";
      if (rows[2 * rank][column] == '.' && rows[2 * rank + 1][column] == '.') ++waits;
    }
    const double busy = said["ranks"][rank]["busy_seconds"].get<double>() / said["seconds"].get<double>();
    EXPECT_NEAR(static_cast<double>(waits) / static_cast<double>(rows[2 * rank].size()), 1 - busy, 0.12) << rank;
  }
}

// Every layer on one stage, every source owned once, and a stage receives what its layers read and other ranks make.
TEST_F(PlanVerb, StagesHoldTheLayersAndReceiveWhatTheyReadFromElsewhere) {
  test::Random random;
  for (int i = 0; i < 6; ++i) {
    const std::string text = test::random_map(random, 12, false);
    const KvMap map = KvMap::parse(text, 12, 0);
    const nlohmann::json said =
        json({"--set", "model.kv_map=" + text, "--pp", "2", "--stages-per-rank", i % 2 == 0 ? "1" : "2"});
    int next = 0;
    double share = 0;
    std::vector<int> rank_of(12);
    for (const nlohmann::json& stage : said["stages"]) {
      EXPECT_EQ(stage["first_layer"], next);
      std::vector<int> sources;
      for (; next <= stage["last_layer"]; ++next) {
        rank_of[static_cast<std::size_t>(next)] = stage["rank"];
        if (map.is_kv_layer(next)) sources.push_back(next);
      }
      EXPECT_EQ(stage["sources"].get<std::vector<int>>(), sources);
      share += stage["compute_share"].get<double>();
    }
    EXPECT_EQ(next, 12);
    EXPECT_NEAR(share, 1, 1e-9);
    for (const nlohmann::json& stage : said["stages"]) {
      std::set<int> received;
      for (int layer = stage["first_layer"]; layer <= stage["last_layer"]; ++layer) {
        for (const KvPart part : kKvParts) {
          const int source = map.source(part, layer);
          if (rank_of[static_cast<std::size_t>(source)] != stage["rank"]) received.insert(source);
        }
      }
      EXPECT_EQ(stage["received_sources"].get<std::set<int>>(), received) << text;
    }
  }
}

TEST_F(PlanVerb, TheTextShowsStagesMessagesThePredictionAndTheSchedule) {
  const std::string text = printed({"--pp", "2", "--boundaries", "5"});
  for (const char* part : {"12 layers, 3 KV layers", "1 data x 2 pipeline x 1 tensor ranks", "8 micro-batches",
                           "--boundaries 5 (given)", "0-4", "5-11", "0 > 1", "1 > 0", "dK/dV", "predicted ", "even ",
                           "at boundaries 6", "(P-1)/(M+P-1)", "rank   0  forward  |0", "         backward |"}) {
    EXPECT_THAT(text, HasSubstr(part));
  }
  // Each micro-batch shows on every rank, forward and backward.
  std::istringstream lines(text.substr(text.find("rank   0")));
  for (std::string line; std::getline(lines, line);) {
    ASSERT_EQ(line.size(), 121u) << line;
    for (char mark = '0'; mark < '8'; ++mark) EXPECT_THAT(line.substr(20, 100), HasSubstr(std::string(1, mark)));
  }
}

TEST_F(PlanVerb, MeshAndFlagsMeanTheSame) {
  folder().write("run.pbtxt", run_text() +
                                  "mesh { pipeline: 2 tensor: 2 stages_per_rank: 2 schedule: GPIPE placement: EVEN\n"
                                  "       sequence_parallel: true devices: H100 shard_optimizer: true data: 2 }\n");
  const nlohmann::json from_file = json({});
  EXPECT_EQ(from_file["placement"], "even");
  EXPECT_EQ(from_file["boundaries"], "3,6,9");
  EXPECT_EQ(from_file["micro_batches"], 4);
  const Words flags = {"--pp",       "2",      "--tp",        "2",    "--stages-per-rank",   "2",
                       "--schedule", "gpipe",  "--placement", "even", "--sequence-parallel", "--devices",
                       "h100",       "--zero", "--dp",        "2"};
  folder().write("run.pbtxt", run_text());
  EXPECT_EQ(json(flags), from_file);
  EXPECT_NE(json({"--pp", "2"}), from_file);
}

TEST_F(PlanVerb, FlagsCountBeforeTheFile) {
  folder().write("run.pbtxt", run_text() + "mesh { pipeline: 2 boundaries: \"3\" }\n");
  EXPECT_EQ(json({})["boundaries"], "3");
  EXPECT_EQ(json({"--placement", "even"})["boundaries"], "6");
  EXPECT_EQ(json({"--pp", "3", "--boundaries", "2,7"})["boundaries"], "2,7");
}

TEST_F(PlanVerb, SpeedsDecideWhatIsPredicted) {
  const double seconds = json({"--pp", "2", "--device-tflops", "1", "--link-gbps", "100"})["seconds"];
  const double half = json({"--pp", "2", "--device-tflops", "2", "--link-gbps", "200"})["seconds"];
  EXPECT_NEAR(half, seconds / 2, 1e-9 * seconds);
  EXPECT_LT(json({"--pp", "2", "--devices", "h100"})["seconds"], json({"--pp", "2", "--devices", "cpu"})["seconds"]);
}

TEST_F(PlanVerb, SharingTheOptimizerTakesLessMemory) {
  const auto weights = [&](Words words) -> std::int64_t {
    return json(std::move(words))["ranks"][0]["memory_bytes"]["weights"];
  };
  // Two f32 moments of four values a weight, shared by four.
  EXPECT_EQ(weights({"--dp", "4", "--zero"}) * 16, weights({"--dp", "4"}) * 10);
}

TEST_F(PlanVerb, ThePictureIsWholeOrNotThere) {
  printed({"--pp", "2", "--svg", "schedule.svg"});
  const std::string svg = read_bytes(folder() / "schedule.svg");
  EXPECT_THAT(svg, ::testing::StartsWith("<svg "));
  EXPECT_THAT(svg, ::testing::EndsWith("</svg>\n"));
  EXPECT_THAT(svg, HasSubstr("<title>forward of chunk 0 (stage 0) of micro-batch 7</title>"));
  EXPECT_THAT(svg, ::testing::Not(HasSubstr("hsl(")));
  EXPECT_THAT(svg, HasSubstr(" s</text>")) << "ticks";
  EXPECT_THAT(svg, ::testing::ContainsRegex("<line [^>]*><title>[^<]*from rank 0 to rank 1, micro-batch 7</title>"));

  Words command = {KVLOOM_BINARY, "plan", "--config", "run.pbtxt", "--pp", "2", "--svg", "full.svg"};
  test::ProcessOptions options;
  options.folder = folder().path();
  options.largest_file = 2000;
  const test::ProcessResult full = test::run_process(command, options);
  EXPECT_EQ(full.status, 1) << full.error;
  EXPECT_EQ(full.error_lines(), 1) << full.error;
  EXPECT_THAT(full.error, HasSubstr("full.svg"));
  std::vector<std::string> left;
  for (const auto& entry : std::filesystem::directory_iterator(folder().path())) {
    if (entry.path().filename().string().find("full.svg") != std::string::npos) left.push_back(entry.path().string());
  }
  EXPECT_THAT(left, ::testing::IsEmpty());
}

TEST_F(PlanVerb, MistakesAreAnsweredWithOneLineAndStatus2) {
  expect_refused({"--config", "none.pbtxt"}, "none.pbtxt");
  expect_refused({"--pp", "13"}, "13 pipeline stages");
  expect_refused({"--pp", "0"}, "mesh.pipeline");
  expect_refused({"--pp", "-1"}, "--pp");
  expect_refused({"--pp", "99999999999"}, "--pp");
  expect_refused({"--pp", "4000", "--stages-per-rank", "4000"}, "stages");
  expect_refused({"--tp", "3"}, "mesh.tensor");
  expect_refused({"--dp", "3"}, "global_batch");
  expect_refused({"--pp", "2", "--boundaries", "12"}, "1 to 11");
  expect_refused({"--pp", "2", "--boundaries", "0,6"}, "1 to 11");
  expect_refused({"--pp", "3", "--boundaries", "6,3"}, "ascend");
  expect_refused({"--pp", "2", "--boundaries", "6,"}, "like 6,12,18");
  expect_refused({"--pp", "2", "--boundaries", "six"}, "like 6,12,18");
  expect_refused({"--pp", "2", "--boundaries", "3,6"}, "3 stages");
  expect_refused({"--pp", "2", "--stages-per-rank", "2", "--boundaries", "6"}, "2 stages");
  expect_refused({"--pp", "2", "--boundaries", "6", "--placement", "even"}, "--placement");
  expect_refused({"--placement", "best"}, "best");
  expect_refused({"--schedule", "1b1f"}, "1b1f");
  expect_refused({"--devices", "v100"}, "v100");
  expect_refused({"--link-gbps", "-1"}, "mesh.link_gbps");
  expect_refused({"--device-tflops", "nan"}, "mesh.device_tflops");
  expect_refused({"--memory-gib", "0.01", "--pp", "2"}, "0.01 GiB");
  expect_refused({"--tp", "2", "--sequence-parallel", "--set", "model.context=255"}, "sequence_parallel");
  expect_refused({"--pp", "2", "--svg", "nowhere/schedule.svg"}, "nowhere");
  expect_refused({"--colour"}, "--colour");
}

TEST_F(PlanVerb, AServedModelIsCutWhereItDecodesFastest) {
  const auto json = nlohmann::json::parse(printed({"--serve", "--pp", "3", "--devices", "h100", "--json"}));
  EXPECT_EQ(json["placement"], "auto");
  EXPECT_EQ(json["boundaries"].size(), 4u);
  EXPECT_EQ(json["stages"].size(), 3u);
  for (const auto& rate : json["rates"]) EXPECT_GT(rate["tokens_per_second"], 0);
  // The top stage reads the head beside its layers: no more of them than others have.
  const auto even =
      nlohmann::json::parse(printed({"--serve", "--pp", "3", "--devices", "h100", "--placement", "even", "--json"}));
  EXPECT_EQ(even["boundaries"], (nlohmann::json{0, 4, 8, 12}));
  EXPECT_LE(json["boundaries"][3].get<int>() - json["boundaries"][2].get<int>(), 4);
  EXPECT_GE(json["rates"][1]["relative_to_even"], 1.0);
  // sandwich-top:3 of 12 layers: 0, then 1 to 10 read 10, then 11.
  const auto cut = nlohmann::json::parse(printed({"--serve", "--pp", "2", "--boundaries", "6", "--json"}));
  ASSERT_EQ(cut["edges"].size(), 1u);
  const auto& edge = cut["edges"][0];
  EXPECT_EQ(edge["source"], 10);
  EXPECT_EQ(edge["from"], 1);
  EXPECT_EQ(edge["to"], 0);
  EXPECT_EQ(edge["upward"], true);
  EXPECT_EQ(edge["bytes_per_token"], 2 * 4 * 64 * 4);
  EXPECT_EQ(cut["bytes_per_token"]["hidden"], 512 * 4);
  EXPECT_EQ(cut["bytes_per_token"]["logits"], 8192 * 4);
  const std::string text = printed({"--serve", "--pp", "2", "--boundaries", "6", "--kv-memory", "64MiB"});
  EXPECT_THAT(text, HasSubstr("K/V of layer 10 from stage 1 to stage 0, for the next step: 2.0 KiB a token"));
  EXPECT_THAT(text, HasSubstr("64.0 MiB of a rank for K/V"));
  expect_refused({"--serve", "--pp", "13"}, "13 pipeline stages");
  expect_refused({"--serve", "--pp", "2", "--boundaries", "3,6"}, "3 stages");
  expect_refused({"--serve", "--kv-memory", "1KiB"}, "K/V memory");
  expect_refused({"--serve", "--tp", "3"}, "mesh.tensor");
  expect_refused({"--serve", "--memory-gib", "0.001", "--devices", "h100"}, "more ranks");
  expect_refused({"--serve", "--svg", "a.svg"}, "--svg");
}

TEST_F(PlanVerb, HelpShowsHowRanksAreStarted) {
  const std::string help = printed({"--help"});
  for (const char* part : {"mpirun -n", "--hostfile", "srun --mpi=pmix", "sbatch launch/recipes/train.sbatch"}) {
    EXPECT_THAT(help, HasSubstr(part));
  }
}

}  // namespace
}  // namespace kvloom
