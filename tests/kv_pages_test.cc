// Pages by source: which sources share tables, what a sequence keeps, and that bytes are what the map says.
#include "core/kv_pages.h"

#include <gtest/gtest.h>

#include "tests/support/engine_fixture.h"

namespace kvloom {
namespace {

ModelConfig config_of(int layers, const std::string& map, int window = 0) {
  return ModelConfig::from_proto(test::small_model(layers, map, window));
}

// Of the small model's K and V of one source in f32.
constexpr std::int64_t kBytes = 2 * 2 * 4 * 4;

TEST(KvPages, SourcesOfEqualReachFormAGroupTheWidestFirst) {
  // 0 is read by a reader of 5 and by one that sees everything, 2 within 5, 4 within 3, 5 by itself.
  const KvMap map = KvMap::parse("0_0_2_2_4_5", 6).with_windows({5, 0, 5, 4, 3, 0});
  EXPECT_EQ(map.reach(KvPart::kKey, 0), 0);
  EXPECT_EQ(map.reach(KvPart::kValue, 2), 5);
  const std::vector<ReachGroup> groups = reach_groups(map);
  ASSERT_EQ(groups.size(), 3U);
  EXPECT_EQ(groups[0].sources, (ByPart<std::vector<int>>{{0, 5}, {0, 5}}));
  EXPECT_EQ(groups[1].reach, 5);
  EXPECT_EQ(groups[1].sources, (ByPart<std::vector<int>>{{2}, {2}}));
  EXPECT_EQ(groups[2].reach, 3);
}

// FusedKV-Lite over windowed layers: V of layer 0 is seen to its beginning, K of it within the window.
TEST(KvPages, KeysAndValuesOfOneLayerMayReachBackDifferently) {
  const std::vector<ReachGroup> groups = reach_groups(KvMap::parse("0s_1s_2_2:0_2:0", 5, 6));
  ASSERT_EQ(groups.size(), 2U);
  EXPECT_EQ(groups[0], (ReachGroup{0, {{2}, {0, 2}}}));
  EXPECT_EQ(groups[1], (ReachGroup{6, {{0, 1}, {1}}}));
  EXPECT_EQ(groups[0].pools(), 3);
}

TEST(KvPages, BytesAreSourcesTimesWhatTheyKeep) {
  EXPECT_EQ(kv_bytes(config_of(22, "none"), KvFormat::kF32, 100), 22 * 100 * kBytes);
  EXPECT_EQ(kv_bytes(config_of(22, "sandwich-middle:3"), KvFormat::kF32, 100), 3 * 100 * kBytes);
  EXPECT_EQ(kv_bytes(config_of(8, "yoco", 512), KvFormat::kF32, 8192), (4 * 512 + 8192) * kBytes);
  EXPECT_EQ(kv_bytes(config_of(8, "yoco", 512), KvFormat::kBF16, 300), 5 * 300 * kBytes / 2);
  // Nobody reads V of layer 4 or K of layer 5.
  EXPECT_EQ(kv_bytes(config_of(8, "0_1_2_3_4:3_4:5_4:5_4:5"), KvFormat::kF32, 100), (4 * 2 + 2) * 100 * kBytes / 2);
  EXPECT_EQ(kv_bytes(config_of(5, "0s_1s_2_2:0_2:0", 6), KvFormat::kF32, 100), (3 * 100 + 3 * 6) * kBytes / 2);
  // int8 has an f32 scale for each head of 4.
  EXPECT_EQ(kv_bytes(config_of(2, "none"), KvFormat::kInt8, 7), 2 * 7 * 2 * 2 * (4 + 4));
}

TEST(KvPages, PoolsTakeTheMemoryTheyAreGiven) {
  for (const char* map : {"none", "sandwich-middle:3", "yoco", "0s_1s_2_2:0_2:0_2:5_6:0_7s"}) {
    const ModelConfig config = config_of(8, map, 40);
    const std::int64_t bytes = 3'000'000;
    const auto pages = pages_within(config, KvFormat::kF32, 16, bytes, 500, 64);
    CachingCpuAllocator allocator;
    const KvPages pools(config, {.page_size = 16, .kv_heads = 2, .pages = pages, .swap_places = {}}, allocator);
    EXPECT_LE(pools.bytes(), bytes) << map;
    EXPECT_GT(pools.bytes(), bytes - 8 * 16 * kBytes) << map;
  }
  EXPECT_THROW(pages_within(config_of(8, "none"), KvFormat::kF32, 16, 1000, 500, 64), InputError);
}

TEST(KvPages, AnEngineHoldsWhatTheMapAndItsWindowsNeed) {
  test::Random random;
  for (const auto& [map, window] : {std::pair("none", 0), std::pair("sandwich-middle:3", 0), std::pair("yoco", 40),
                                    std::pair("0s_1s_2s_3s_4_4:0_4:0_4:2", 40)}) {
    proto::ModelConfig message = test::small_model(8, map, window);
    message.set_context(600);
    test::EngineModel built(message, random);
    EngineOptions options;
    options.page_size = 16;
    options.grid = 64;
    options.max_chunk = 32;
    options.prefix_cache = false;
    Engine engine(built.model, options);
    Request request;
    request.prompt = random.tokens(500, 29);
    request.max_new_tokens = 90;
    request.sampling.temperature = 0;
    engine.submit(request);
    std::int64_t most = 0;
    const std::int64_t page = 16 * kBytes;
    while (!engine.is_idle()) {
      engine.step();
      std::int64_t held = 0;
      for (std::size_t group = 0; group < engine.counts().pages.size(); ++group) {
        const std::int64_t pools = engine.pages().groups()[group].pools();
        held += engine.counts().pages[group].held * pools * page / 2;
      }
      most = std::max(most, held);
    }
    const std::int64_t wanted = kv_bytes(built.model.config(), KvFormat::kF32, 589);
    // Pages that are not full at either end, and the rows under way.
    EXPECT_GE(most, wanted) << map;
    EXPECT_LE(most, wanted + std::ssize(built.model.config().kv_map.kv_layers()) * (page + (window > 0 ? 4 * page : 0)))
        << map;
  }
}

}  // namespace
}  // namespace kvloom
