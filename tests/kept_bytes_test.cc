// What is kept of K and V: `inspect` of a checkpoint, `kvmap` of its map and the pages that an engine holds say the
// same bytes, sources by reach times positions times bytes.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "core/kv_kept.h"
#include "tests/support/engine_fixture.h"
#include "tests/support/tiny_run.h"

namespace kvloom {
namespace {

constexpr std::int64_t kPage = 16;
constexpr int kWindow = 20;

nlohmann::json said(const test::TinyRun& run, const std::vector<std::string>& words) {
  const test::ProcessResult result = run.kvloom(words);
  EXPECT_EQ(result.status, 0) << result.error;
  return nlohmann::json::parse(result.output);
}

// The most that an engine holds for one text of `positions` positions, a multiple of the page's.
std::int64_t held_by_engine(const InferenceModel& model, KvFormat format, std::int64_t positions,
                            test::Random& random) {
  EngineOptions options;
  options.kv_format = format;
  options.page_size = kPage;
  options.grid = kPage;
  options.prefix_cache = false;
  Engine engine(model, options);
  Request request;
  request.prompt = random.tokens(static_cast<std::size_t>(positions / 2), model.config().vocab);
  // The last token's own K and V are never needed.
  request.max_new_tokens = positions - std::ssize(request.prompt) + 1;
  request.sampling.temperature = 0;
  engine.submit(request);
  std::int64_t most = 0;
  while (!engine.is_idle()) {
    engine.step();
    std::int64_t held = 0;
    const auto groups = engine.pages().groups();
    for (std::size_t group = 0; group < groups.size(); ++group) {
      held += engine.counts().pages[group].held * kPage *
              kv_bytes_per_position(groups[group], format, model.config().kv_heads, model.config().head_dim);
    }
    most = std::max(most, held);
  }
  return most;
}

// The hand's count: sources by reach, times positions, times the bytes of K and V.
std::int64_t counted(const KvMap& map, std::int64_t row_bytes, std::int64_t positions) {
  std::int64_t bytes = 0;
  for (const int source : map.kv_layers()) {
    for (const KvPart part : kKvParts) {
      std::int64_t widest = 0;
      for (const int reader : map.readers(part, source)) {
        widest = std::max(widest, map.window(reader) == 0 ? positions : map.window(reader));
      }
      bytes += std::min(widest, positions) * row_bytes;
    }
  }
  return bytes;
}

TEST(KeptBytes, OfInspectKvmapAndTheEnginesPagesAreTheSame) {
  test::Random random;
  const test::TinyRun run;
  for (const std::string map : {"none", "sandwich-middle:3", "pizza-bottom:2", "cla:2", "lckv:1", "yoco",
                                "0s_1_1s_1_5_5s", "last-shared:3", "fused-lite:3", "0s_1s_2_2:0_2:0_4:1s"}) {
    ASSERT_EQ(run.train({"--set", "train.steps=1", "--set", "model.layers=6", "--set", "model.context=64", "--set",
                         "model.kv_map=" + map, "--set", "model.window=" + std::to_string(kWindow), "--set",
                         "output.directory=" + map})
                  .status,
              0);
    const std::string checkpoint = map + "/step-00000001";
    const nlohmann::json inspected = said(run, {"inspect", checkpoint, "--json"});
    CachingCpuAllocator allocator(BlockSizes::kClasses);
    const LoadedInferenceModel loaded = load_inference_model((run / checkpoint).string(), {}, allocator);
    const ModelConfig& config = loaded.model->config();
    const bool windowed = config.kv_map.explicit_form().find('s') != std::string::npos;
    for (const KvFormat format : {KvFormat::kF32, KvFormat::kBF16, KvFormat::kInt8}) {
      const std::string dtype(name_of(format));
      const std::int64_t row = kv_row_bytes(format, config.kv_heads, config.head_dim);
      const auto of_kvmap = [&](std::int64_t positions) {
        return said(run, {"kvmap", "--layers", "6", "--map", map, "--window", std::to_string(kWindow), "--kv-heads",
                          std::to_string(config.kv_heads), "--head-dim", std::to_string(config.head_dim), "--dtype",
                          dtype, "--prompt", std::to_string(positions), "--json"});
      };
      EXPECT_EQ(inspected["kv_bytes_at_context"]["positions"], 64);
      EXPECT_EQ(inspected["kv_bytes_at_context"][dtype], counted(config.kv_map, row, 64)) << map;
      EXPECT_EQ(of_kvmap(64)["kv_bytes"], counted(config.kv_map, row, 64)) << map;
      EXPECT_EQ(inspected["kv_bytes_per_token"][dtype], counted(config.kv_map, row, 1)) << map;
      EXPECT_EQ(of_kvmap(48)["kv_bytes_per_token"], counted(config.kv_map, row, 1)) << map;
      const std::int64_t held = held_by_engine(*loaded.model, format, 48, random);
      const std::int64_t kept = counted(config.kv_map, row, 48);
      EXPECT_EQ(of_kvmap(48)["kv_bytes"], kept) << map;
      if (!windowed) {
        EXPECT_EQ(held, kept) << map << " in " << dtype;
        continue;
      }
      // Of a window, whole pages are held: those that its ends lie in, and rows under way.
      const auto sources = std::ssize(config.kv_map.kv_layers());
      EXPECT_GE(held, kept) << map << " in " << dtype;
      EXPECT_LT(held, kept + sources * 2 * kPage * 2 * row) << map << " in " << dtype;
      EXPECT_LT(held, counted(KvMap::parse("none", 6), row, 48)) << map;
    }
  }
}

TEST(KeptBytes, OfGroupsSumToAllAndTheirLinesNameEverySource) {
  test::Random random;
  for (int round = 0; round < 50; ++round) {
    const int layers = static_cast<int>(random.integer(1, 12));
    const ModelConfig config =
        ModelConfig::from_proto(test::small_model(layers, test::random_map(random, layers, true), 7));
    const std::int64_t positions = random.integer(1, 32);
    std::int64_t bytes = 0;
    ByPart<std::vector<int>> sources;
    for (const KvKept& kept : kv_kept(config, KvFormat::kBF16, positions)) {
      EXPECT_EQ(kept.positions, kept.group.reach == 0 ? positions : std::min(positions, kept.group.reach));
      bytes += kept.bytes;
      for (const KvPart part : kKvParts) {
        const std::vector<int>& own = kept.group.sources[part];
        sources[part].insert(sources[part].end(), own.begin(), own.end());
      }
    }
    EXPECT_EQ(bytes, kv_bytes(config, KvFormat::kBF16, positions));
    for (const KvPart part : kKvParts) {
      std::ranges::sort(sources[part]);
      std::vector<int> owners;
      for (int layer = 0; layer < layers; ++layer) {
        if (config.kv_map.owns(part, layer)) owners.push_back(layer);
      }
      EXPECT_EQ(sources[part], owners);
    }
  }
  EXPECT_EQ(reach_lines(KvMap::parse("0s_1s_2s_3_3", 5, 128)),
            (std::vector<std::string>{"source 3: every position", "sources 0..2: the last 128 positions"}));
  EXPECT_EQ(
      reach_lines(KvMap::parse("0s_1s_2_2:0_2:0", 5, 6)),
      (std::vector<std::string>{"K of 2 and V of 0,2: every position", "K of 0,1 and V of 1: the last 6 positions"}));
  EXPECT_EQ(joined_runs({0, 1, 3, 4, 5, 9}), "0,1,3..5,9");
}

}  // namespace
}  // namespace kvloom
