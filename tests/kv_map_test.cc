// Written forms of a KV map against DESIGN 3: the published examples, an oracle of the definitions, and refusals.
#include "core/kv_map.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "kernels/error.h"
#include "tests/support/random.h"

namespace kvloom {
namespace {

using ::testing::HasSubstr;

constexpr std::int64_t kWindow = 5;

// Source by layer, written as the explicit form.
std::string written(int layers, const std::function<int(int)>& source, const std::function<bool(int)>& windowed) {
  std::string text;
  for (int layer = 0; layer < layers; ++layer) {
    text += (layer == 0 ? "" : "_") + std::to_string(source(layer)) + (windowed(layer) ? "s" : "");
  }
  return text;
}

std::string written(int layers, const std::function<int(int)>& source) {
  return written(layers, source, [](int) { return false; });
}

std::string explicit_of(const std::string& text, int layers) {
  return KvMap::parse(text, layers, kWindow).explicit_form();
}

std::string refusal(const std::string& text, int layers, std::int64_t window = 0) {
  try {
    KvMap::parse(text, layers, window);
  } catch (const InputError& error) {
    return error.what();
  }
  return "accepted";
}

TEST(KvMap, PublishedExamplesOf22LayersAreMet) {
  EXPECT_EQ(explicit_of("sandwich-top:3", 22), "0_20_20_20_20_20_20_20_20_20_20_20_20_20_20_20_20_20_20_20_20_21");
  EXPECT_EQ(explicit_of("sandwich-middle:3", 22), "0_10_10_10_10_10_10_10_10_10_10_10_10_10_10_10_10_10_10_10_10_21");
  EXPECT_EQ(explicit_of("cla:2", 22), "0_0_2_2_4_4_6_6_8_8_10_10_12_12_14_14_16_16_18_18_20_20");
  EXPECT_EQ(explicit_of("yoco", 22), "0s_1s_2s_3s_4s_5s_6s_7s_8s_9s_10s_11_11_11_11_11_11_11_11_11_11_11");
  EXPECT_EQ(KvMap::parse("lckv:10", 22), KvMap::parse("sandwich-top:11", 22));
}

TEST(KvMap, SmallExamplesWorkedOutByHandAreMet) {
  EXPECT_EQ(explicit_of("pizza-bottom:3", 7), "0_1_2_2_2_2_2");
  EXPECT_EQ(explicit_of("pizza-quarter:3", 7), "0_1_3_3_3_3_3");        // group [2, 6]: 2 + floor(4 / 4)
  EXPECT_EQ(explicit_of("pizza-middle:2", 7), "0_3_3_3_3_3_3");         // group [1, 6]: 1 + floor(5 / 2)
  EXPECT_EQ(explicit_of("pizza-three-quarter:2", 7), "0_4_4_4_4_4_4");  // group [1, 6]: 1 + floor(15 / 4)
  EXPECT_EQ(explicit_of("pizza-top:1", 3), "2_2_2");
  EXPECT_EQ(explicit_of("sandwich-bottom:4", 7), "0_1_2_2_2_2_6");  // two layers below, one above
  EXPECT_EQ(explicit_of("sandwich-top:4", 7), "0_1_5_5_5_5_6");
  EXPECT_EQ(explicit_of("lasagna-bottom:3", 7), "0_0_0_3_3_5_5");
  EXPECT_EQ(explicit_of("lasagna-top:3", 7), "0_3_3_3_6_6_6");
  EXPECT_EQ(explicit_of("lasagna-top:4", 8), "0_3_3_3_5_5_7_7");
  EXPECT_EQ(explicit_of("lasagna-middle:1", 7), "3_3_3_3_3_3_3");
  EXPECT_EQ(explicit_of("mlkv:3", 7), "0_0_0_3_3_5_5");
  EXPECT_EQ(explicit_of("cla:3", 8), "0_0_0_3_3_3_6_6");
  EXPECT_EQ(explicit_of("last-shared:2", 5), "0_1_2_2_2");
  EXPECT_EQ(explicit_of("yoco:2", 4), "0s_1_1_1");
  EXPECT_EQ(explicit_of("yoco", 1), "0");
  EXPECT_EQ(explicit_of("none", 3), "0_1_2");
}

// The target of group [low, high], in exact quarters.
int target(const std::string& position, int low, int high) {
  const std::vector<std::string> quarters = {"bottom", "quarter", "middle", "three-quarter", "top"};
  const auto found = std::find(quarters.begin(), quarters.end(), position);
  return low + (high - low) * static_cast<int>(found - quarters.begin()) / 4;
}

// Which group a layer of `count` layers in `groups` even groups, larger ones first, belongs to.
std::pair<int, int> even_group(int layer, int count, int groups) {
  std::vector<int> sizes(static_cast<std::size_t>(groups), 0);
  for (int i = 0; i < count; ++i) ++sizes[static_cast<std::size_t>(i % groups)];
  int low = 0;
  for (const int size : sizes) {
    if (layer < low + size) return {low, low + size - 1};
    low += size;
  }
  return {low, low};
}

int named_source(const std::string& partition, const std::string& position, int layers, int l, int layer) {
  if (partition == "pizza") {
    return layer < l - 1 ? layer : target(position, l - 1, layers - 1);
  }
  if (partition == "sandwich") {
    const int above = (l - 1) / 2;
    const int below = l - 1 - above;
    return layer < below || layer >= layers - above ? layer : target(position, below, layers - 1 - above);
  }
  const int alone = l >= 2 && position != "bottom" ? 1 : 0;
  if (layer < alone) return layer;
  const auto [low, high] = even_group(layer - alone, layers - alone, l - alone);
  return target(position, low + alone, high + alone);
}

TEST(KvMap, NamedMapsAreTheirDefinitionsAndHaveThatManyKvLayers) {
  for (const std::string partition : {"pizza", "sandwich", "lasagna"}) {
    for (const std::string position : {"bottom", "quarter", "middle", "three-quarter", "top"}) {
      for (const int layers : {1, 2, 3, 6, 7, 22, 31}) {
        for (int l = 1; l <= layers; ++l) {
          const std::string text = partition + "-" + position + ":" + std::to_string(l);
          const KvMap map = KvMap::parse(text, layers);
          EXPECT_EQ(map.explicit_form(),
                    written(layers, [&](int layer) { return named_source(partition, position, layers, l, layer); }))
              << text << " of " << layers;
          EXPECT_EQ(map.kv_layers().size(), static_cast<std::size_t>(l)) << text << " of " << layers;
        }
      }
    }
  }
}

TEST(KvMap, PresetsAreTheirDefinitions) {
  for (const int layers : {1, 2, 5, 22, 23}) {
    for (int n = 1; n <= layers; ++n) {
      const std::string number = std::to_string(n);
      EXPECT_EQ(explicit_of("cla:" + number, layers), written(layers, [&](int layer) { return layer - layer % n; }));
      EXPECT_EQ(explicit_of("yoco:" + number, layers), written(
                                                           layers, [&](int layer) { return std::min(layer, n - 1); },
                                                           [&](int layer) { return layer < n - 1; }));
      EXPECT_EQ(explicit_of("mlkv:" + number, layers), explicit_of("lasagna-bottom:" + number, layers));
      EXPECT_EQ(explicit_of("lckv:" + std::to_string(n - 1), layers), explicit_of("sandwich-top:" + number, layers));
      EXPECT_EQ(explicit_of("last-shared:" + std::to_string(n - 1), layers),
                written(layers, [&](int layer) { return std::min(layer, layers - n); }));
    }
    EXPECT_EQ(explicit_of("none", layers), written(layers, [](int layer) { return layer; }));
  }
}

std::vector<KvReads> random_reads(test::Random& random) {
  std::vector<KvReads> reads;
  const std::int64_t layers = random.integer(1, 40);
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    const auto any = [&] { return static_cast<int>(random.integer(0, layers - 1)); };
    const int key = any();
    reads.push_back({{key, random.flip() ? any() : key}, random.flip() ? 0 : random.integer(1, 9)});
  }
  return reads;
}

// By definition, from what each layer reads.
void expect_readers_of(const KvMap& map, const std::vector<KvReads>& given, KvPart part, int layer) {
  std::vector<int> readers;
  for (int reader = 0; reader < map.layers(); ++reader) {
    if (given[static_cast<std::size_t>(reader)].source[part] == layer) readers.push_back(reader);
  }
  EXPECT_EQ(std::vector<int>(map.readers(part, layer).begin(), map.readers(part, layer).end()), readers);
  EXPECT_EQ(map.owns(part, layer), !readers.empty());
  EXPECT_EQ(map.is_read_upward(part, layer), std::ranges::any_of(readers, [&](int reader) { return reader < layer; }));
}

TEST(KvMap, ReadersKvLayersAndWindowsFollowFromWhatLayersRead) {
  test::Random random;
  for (int round = 0; round < 200; ++round) {
    const std::vector<KvReads> given = random_reads(random);
    const Diagonal diagonal = random.flip() ? Diagonal::kSeen : Diagonal::kHidden;
    const KvMap map = KvMap::from_reads(given, diagonal);
    SCOPED_TRACE(map.explicit_form());
    std::vector<int> kv_layers;
    std::int64_t parts = 0;
    for (int layer = 0; layer < map.layers(); ++layer) {
      const KvReads& reads = given[static_cast<std::size_t>(layer)];
      for (const KvPart part : kKvParts) {
        expect_readers_of(map, given, part, layer);
        EXPECT_EQ(map.source(part, layer), reads.source[part]);
        parts += map.owns(part, layer) ? 1 : 0;
      }
      const bool upward = reads.source.key > layer || reads.source.value > layer;
      EXPECT_EQ(map.reads_upward(layer), upward);
      EXPECT_EQ(map.visibility(layer) == Visibility::kUpward, upward || diagonal == Diagonal::kHidden);
      EXPECT_EQ(map.window(layer), reads.window);
      EXPECT_EQ(map.is_kv_layer(layer), map.owns(KvPart::kKey, layer) || map.owns(KvPart::kValue, layer));
      if (map.is_kv_layer(layer)) kv_layers.push_back(layer);
    }
    EXPECT_EQ(std::vector<int>(map.kv_layers().begin(), map.kv_layers().end()), kv_layers);
    EXPECT_EQ(map.owned_parts(), parts);
  }
}

TEST(KvMap, ExplicitFormReadsBackAsTheSameMap) {
  test::Random random;
  for (int round = 0; round < 200; ++round) {
    std::vector<KvReads> given = random_reads(random);
    for (KvReads& reads : given) reads.window = reads.window > 0 ? kWindow : 0;
    const Diagonal diagonal = random.flip() ? Diagonal::kSeen : Diagonal::kHidden;
    const KvMap map = KvMap::from_reads(given, diagonal);
    EXPECT_EQ(KvMap::parse(map.explicit_form(), map.layers(), kWindow, diagonal), map) << map.explicit_form();
  }
}

// FusedKV-Lite's own example (arXiv 2512.03870): the upper half reads K of the middle and V of the bottom.
TEST(KvMap, KeysAndValuesMayComeFromTwoLayers) {
  EXPECT_EQ(explicit_of("fused-lite:4", 8), "0_1_2_3_3:0_3:0_3:0_3:0");
  EXPECT_EQ(explicit_of("fused-lite:1", 3), "0_0_0");
  EXPECT_EQ(explicit_of("fused-lite:3", 3), "0_1_2");
  EXPECT_EQ(explicit_of("0_1:1_2:0s", 3), "0_1_2:0s");
  const KvMap map = KvMap::parse("0_2:0_2_1:0", 4);
  EXPECT_FALSE(map.owns(KvPart::kKey, 3) || map.owns(KvPart::kValue, 3));
  EXPECT_TRUE(map.owns(KvPart::kKey, 1));
  EXPECT_FALSE(map.owns(KvPart::kValue, 1));
  EXPECT_TRUE(map.reads_upward(1));
  EXPECT_TRUE(map.is_read_upward(KvPart::kKey, 2));
  EXPECT_FALSE(map.is_read_upward(KvPart::kValue, 2));
}

TEST(KvMap, AWindowChangesOnlyWindowedReaders) {
  EXPECT_EQ(KvMap::parse("0_1_1", 3, 8), KvMap::parse("0_1_1", 3));
  const KvMap map = KvMap::parse("0s_1_0_0s", 4, 8);
  EXPECT_EQ(map.window(0), 8);
  EXPECT_EQ(map.window(2), 0);
}

TEST(KvMap, RefusalsNameTheLayerAndTheReason) {
  EXPECT_THAT(refusal("0_1", 3), ::testing::AllOf(HasSubstr("2 layers"), HasSubstr("3")));
  EXPECT_THAT(refusal("0_1_2_3", 3), ::testing::AllOf(HasSubstr("4 layers"), HasSubstr("3")));
  EXPECT_THAT(refusal("0_3_2", 3), ::testing::AllOf(HasSubstr("layer 1"), HasSubstr("0 to 2")));
  EXPECT_THAT(refusal("0_99999999999_2", 3), ::testing::AllOf(HasSubstr("layer 1"), HasSubstr("99999999999")));
  EXPECT_THAT(refusal("0_1s_2", 3), ::testing::AllOf(HasSubstr("layer 1"), HasSubstr("window")));
  EXPECT_THAT(refusal("yoco", 4), HasSubstr("window"));
  EXPECT_THAT(refusal("yoco", 4, -3), HasSubstr("-3"));
  EXPECT_THAT(refusal("pizza-top:0", 3), HasSubstr("1 to 3"));
  EXPECT_THAT(refusal("lasagna-middle:4", 3), HasSubstr("1 to 3"));
  EXPECT_THAT(refusal("sandwich-top:99999999999", 3), HasSubstr("99999999999"));
  EXPECT_THAT(refusal("lckv:3", 3), HasSubstr("0 to 2"));
  EXPECT_THAT(refusal("last-shared:3", 3), HasSubstr("0 to 2"));
  EXPECT_THAT(refusal("cla:0", 3), HasSubstr("1 to 3"));
  EXPECT_THAT(refusal("fused-lite:0", 3), HasSubstr("1 to 3"));
  EXPECT_THAT(refusal("fused-lite:4", 3), HasSubstr("1 to 3"));
  EXPECT_THAT(refusal("0_1:3_2", 3), ::testing::AllOf(HasSubstr("layer 1 reads layer 3"), HasSubstr("0 to 2")));
  EXPECT_THAT(refusal("0_1_2:0:1", 3), ::testing::AllOf(HasSubstr("layer 2"), HasSubstr("'2:0:1'")));
  EXPECT_THAT(refusal("", 3), HasSubstr("empty"));
  EXPECT_THAT(refusal("none", 0), HasSubstr("0 layers"));
  EXPECT_THAT(refusal("none", -1), HasSubstr("-1 layers"));
  EXPECT_THAT(refusal("none", 1 << 30), HasSubstr("4096"));
}

TEST(KvMap, JunkIsRefused) {
  for (const std::string text : {"_",
                                 "0_",
                                 "_0",
                                 "0__2",
                                 "0_1_2_",
                                 "0_1_2 ",
                                 " 0_1_2",
                                 "0_-1_2",
                                 "0_+1_2",
                                 "0_1ss_2",
                                 "0_s_2",
                                 "0x0_1_2",
                                 "0,1,2",
                                 "0_1.5_2",
                                 "None",
                                 "none:1",
                                 "yoco:",
                                 "yoco:2:1",
                                 "cla",
                                 "cla:",
                                 "cla:two",
                                 "cla:-1",
                                 "sandwich:3",
                                 "sandwich-:3",
                                 "-top:3",
                                 "sandwich-top",
                                 "sandwich-top:",
                                 "sandwich-top:3s",
                                 "pizza-top:2 ",
                                 "calzone-top:2",
                                 "sandwich-sideways:2",
                                 "last-shared",
                                 "fused-lite",
                                 "fused-lite:",
                                 "0_:1_2",
                                 "0_1:_2",
                                 "0_1s:0_2",
                                 "0_1:0ss_2",
                                 "0_1:-1_2",
                                 "0_1+0_2",
                                 "mlkv",
                                 "lckv:-1",
                                 ":",
                                 "\n",
                                 "s"}) {
    EXPECT_NE(refusal(text, 3, kWindow), "accepted") << "'" << text << "'";
  }
  EXPECT_NE(refusal(std::string("0_1_2\0", 6), 3), "accepted");
}

TEST(KvMap, SourcesAndWindowsThatDoNotFitAreRefused) {
  EXPECT_THROW(KvMap::from_reads({}), InputError);
  EXPECT_THROW(KvMap::parse("none", 2).with_windows({0}), InputError);
  EXPECT_THROW(KvMap::from_reads({{{0, 0}}, {{2, 1}}}), InputError);
  EXPECT_THROW(KvMap::from_reads({{{0, 0}}, {{1, 2}}}), InputError);
  EXPECT_THROW(KvMap::from_reads({{{0, 0}}, {{-1, 1}}}), InputError);
  EXPECT_THROW(KvMap::from_reads({{{0, 0}}, {{1, 1}, -1}}), InputError);
}

}  // namespace
}  // namespace kvloom
