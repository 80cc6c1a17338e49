// `kvloom kvmap` as a user runs it: what it prints is what the map and the plan say, and mistakes end with status 2.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "core/iteration_plan.h"
#include "core/kv_map.h"
#include "tests/support/model_fixture.h"
#include "tests/support/verb_test.h"

namespace kvloom {
namespace {

using test::Words;
using ::testing::HasSubstr;

class KvmapVerb : public test::VerbTest {
 protected:
  KvmapVerb() : VerbTest("kvmap") {}
};

TEST_F(KvmapVerb, ExplicitPrintsTheOneLineFormThatReadsBack) {
  for (const std::string form :
       {"sandwich-middle:3", "cla:2", "yoco", "lckv:10", "none", "last-shared:4", "fused-lite:11"}) {
    const std::string line = printed({"--layers", "22", "--map", form, "--window", "9", "--explicit"});
    EXPECT_EQ(line, KvMap::parse(form, 22, 9).explicit_form() + "\n");
    EXPECT_EQ(printed({"--layers", "22", "--map", line.substr(0, line.size() - 1), "--window", "9", "--explicit"}),
              line);
  }
}

TEST_F(KvmapVerb, TheDrawingShowsEveryLayerItsSourceAndItsWindow) {
  const std::string drawing = printed({"--layers", "4", "--map", "0s_2_2_1", "--window", "9"});
  EXPECT_THAT(drawing, HasSubstr("0s_2_2_1"));
  EXPECT_THAT(drawing, HasSubstr("the last 9 positions"));
  EXPECT_THAT(drawing, HasSubstr("layers 1 to 2: iterated together"));
  EXPECT_THAT(drawing, HasSubstr("layers 3 to 3: one pass"));
  std::istringstream lines(drawing);
  Words drawn;
  for (std::string line; std::getline(lines, line);) {
    if (line.find("reads") != std::string::npos) drawn.push_back(line);
  }
  ASSERT_EQ(drawn.size(), 4) << drawing;
  const std::vector<bool> is_kv_layer = {false, true, true, true};  // the top layer is drawn first
  for (std::size_t i = 0; i < drawn.size(); ++i) {
    EXPECT_EQ(drawn[i].find("[KV]") != std::string::npos, is_kv_layer[i]) << drawn[i];
  }
}

// Where the numbers of the heading end are the columns; what a row's marks say is compared with the map alone.
void expect_drawn(const std::string& drawing, const KvMap& map) {
  std::istringstream stream(drawing);
  Words lines;
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  const auto heading = std::ranges::find_if(lines, [](const std::string& line) {
    return line.find_first_not_of(" 0123456789") == std::string::npos && !line.empty();
  });
  ASSERT_NE(heading, lines.end()) << drawing;
  std::map<int, std::size_t> columns;
  for (std::size_t at = 0; at < heading->size();) {
    const std::size_t begin = heading->find_first_not_of(' ', at);
    at = std::min(heading->find(' ', begin), heading->size());
    columns[std::stoi(heading->substr(begin, at - begin))] = at - 1;
  }
  ASSERT_EQ(columns.size(), map.kv_layers().size()) << drawing;
  for (int layer = 0; layer < map.layers(); ++layer) {
    const std::string& row = heading[map.layers() - layer];
    ASSERT_EQ(std::stoi(row), layer) << drawing;
    EXPECT_LE(row.size(), 155) << row;
    const int key = map.source(KvPart::kKey, layer);
    const int value = map.source(KvPart::kValue, layer);
    const std::size_t furthest = std::max(columns.at(key), columns.at(value));
    const char rail = map.window(layer) > 0 ? '~' : '-';
    EXPECT_EQ(row[furthest - 1], rail) << "joined to the columns that it reads: " << row;
    EXPECT_NE(row[furthest + 1], rail) << "and to none behind them: " << row;
    for (const auto& [column, at] : columns) {
      int lowest = column;
      int highest = column;
      for (int reader = 0; reader < map.layers(); ++reader) {
        if (map.source(KvPart::kKey, reader) != column && map.source(KvPart::kValue, reader) != column) continue;
        lowest = std::min(lowest, reader);
        highest = std::max(highest, reader);
      }
      const bool within = lowest < layer && layer < highest;
      char wanted = column == layer ? '#' : within ? '|' : at < furthest ? rail : ' ';
      if (column != layer && (column == key || column == value)) {
        wanted = key == value ? (column > layer ? '^' : 'v') : column == key ? 'K' : 'V';
      }
      EXPECT_EQ(row[at], wanted) << row << " at column " << column << "\n" << drawing;
    }
  }
}

TEST_F(KvmapVerb, EachReaderIsJoinedToTheColumnOfItsSource) {
  test::Random random;
  Words maps = {"none", "sandwich-middle:3", "lasagna-top:7", "pizza-three-quarter:4", "yoco", "cla:2"};
  for (int i = 0; i < 4; ++i) maps.push_back(test::random_map(random, 22, true));
  for (const std::string& map : maps) {
    expect_drawn(printed({"--layers", "22", "--map", map, "--window", "8"}), KvMap::parse(map, 22, 8));
  }
  EXPECT_THAT(printed({"--layers", "65", "--map", "none"}), HasSubstr("64 [KV]   reads itself")) << "in words alone";
}

TEST_F(KvmapVerb, JsonSaysWhatTheMapSays) {
  const nlohmann::json all = json({"--layers", "6", "--map", "0s_3_1_3_5_5", "--window", "9"});
  const KvMap map = KvMap::parse("0s_3_1_3_5_5", 6, 9);
  EXPECT_EQ(all["explicit"], map.explicit_form());
  ASSERT_EQ(all["layers"].size(), 6);
  for (int layer = 0; layer < 6; ++layer) {
    const nlohmann::json& said = all["layers"][static_cast<std::size_t>(layer)];
    EXPECT_EQ(said["source"], map.source(KvPart::kKey, layer));
    EXPECT_EQ(said["key_source"], map.source(KvPart::kKey, layer));
    EXPECT_EQ(said["value_source"], map.source(KvPart::kValue, layer));
    EXPECT_EQ(said["owns_value"], map.owns(KvPart::kValue, layer));
    EXPECT_EQ(said["window"], map.window(layer));
    EXPECT_EQ(said["upward"], map.reads_upward(layer));
    EXPECT_EQ(said["kv_layer"], map.is_kv_layer(layer));
  }
  EXPECT_EQ(all["segments"], nlohmann::json::parse(R"([{"first": 0, "last": 0, "iterated": false},
                                                       {"first": 1, "last": 3, "iterated": true},
                                                       {"first": 4, "last": 5, "iterated": true}])"));
}

TEST_F(KvmapVerb, KeysAndValuesOfTwoLayersAreDrawnAndCountedApart) {
  const Words words = {"--layers", "6", "--map", "0_1:0_2_2:0_2:0_2:0", "--kv-heads", "2", "--head-dim", "8"};
  const std::string drawing = printed(words);
  EXPECT_THAT(drawing, HasSubstr("reads K of 2, V of 0"));
  EXPECT_THAT(drawing, HasSubstr("1 [K ]"));
  EXPECT_THAT(drawing, HasSubstr("K of 0..2 and V of 0,2: every position"));
  Words as_json = words;
  as_json.insert(as_json.end(), {"--dtype", "f32"});
  const nlohmann::json all = json(as_json);
  EXPECT_TRUE(all["layers"][3]["source"].is_null());
  EXPECT_EQ(all["kv_bytes_per_token"], 5 * 2 * 8 * 4);
}

// Layers 0 and 21 run once; of the iterated 1 to 20, nineteen run in every pass and layer 20 only in the last.
TEST_F(KvmapVerb, LayerRunsAreThoseCountedByHand) {
  const nlohmann::json all = json({"--layers", "22", "--map", "sandwich-top:3"});
  EXPECT_EQ(all["training_runs"]["blocks"], 2 + 9 * 19 + 1);
  EXPECT_EQ(all["training_runs"]["blocks_with_gradient"], 2 + 2 * 19 + 1);
  EXPECT_EQ(all["training_runs"]["key_value_only"], 8);
  EXPECT_EQ(all["prompt_runs"]["blocks"], 2 + 9 * 19 + 1);
  EXPECT_EQ(all["prompt_runs"]["asked_only"], 1);
  EXPECT_DOUBLE_EQ(all["prompt_relative"], 173 / 21.0);
  EXPECT_DOUBLE_EQ(all["training_relative"], (174 + 2 * 41) / 66.0);
  EXPECT_DOUBLE_EQ(all["kv_relative"], 3.0 / 22);
  const nlohmann::json few = json({"--layers", "22", "--map", "sandwich-top:3", "--passes-without-gradient", "1",
                                   "--passes-with-gradient", "1", "--prompt", "1"});
  EXPECT_EQ(few["training_runs"]["blocks"], 2 + 2 * 19 + 1);
  EXPECT_EQ(few["prompt_runs"]["blocks"], 22);
}

TEST_F(KvmapVerb, NoSharingCostsExactlyNoSharing) {
  for (const std::string layers : {"1", "2", "8"}) {
    const nlohmann::json all = json({"--layers", layers, "--map", "none"});
    EXPECT_EQ(all["prompt_relative"], 1.0);
    EXPECT_EQ(all["training_relative"], 1.0);
    EXPECT_EQ(all["kv_relative"], 1.0);
    const std::string text = printed({"--layers", layers, "--map", "none"});
    const std::string mark = "1.00 times no sharing";
    EXPECT_NE(text.find(mark), text.rfind(mark)) << text;
  }
}

TEST_F(KvmapVerb, LayersAboveTheLastKvLayerCostAPromptNothing) {
  EXPECT_DOUBLE_EQ(json({"--layers", "8", "--map", "yoco:4", "--window", "9"})["prompt_relative"], 3 / 7.0);
}

TEST_F(KvmapVerb, BytesPerTokenAreThoseOfKeysAndValuesInTheDtype) {
  const Words words = {"--layers", "22", "--map", "sandwich-top:3", "--kv-heads", "4", "--head-dim", "64", "--dtype"};
  Words bf16 = words;
  bf16.push_back("bf16");
  Words f32 = words;
  f32.push_back("f32");
  EXPECT_EQ(json(bf16)["kv_bytes_per_token"], 3 * 2 * 4 * 64 * 2);
  EXPECT_EQ(json(f32)["kv_bytes_per_token"], 3 * 2 * 4 * 64 * 4);
  EXPECT_THAT(printed(bf16), HasSubstr("3072"));
  EXPECT_FALSE(json({"--layers", "22", "--map", "none"}).contains("kv_bytes_per_token"));
}

TEST_F(KvmapVerb, AWindowedSourceKeepsNoMoreThanItsWindow) {
  const nlohmann::json all = json(
      {"--layers", "8", "--map", "yoco", "--window", "512", "--prompt", "8192", "--kv-heads", "2", "--head-dim", "16"});
  EXPECT_EQ(all["kv_bytes"], (4 * 512 + 8192) * 2 * 2 * 16 * 2);
  EXPECT_DOUBLE_EQ(all["kv_relative"], (4 * 512 + 8192) / (8 * 8192.0));
}

TEST_F(KvmapVerb, MistakesAreAnsweredWithOneLineAndStatus2) {
  expect_refused({"--layers", "4", "--map", "0_9_2_3"}, "layer 1");
  expect_refused({"--layers", "4", "--map", "0_0"}, "2 layers");
  expect_refused({"--layers", "4", "--map", "yoco"}, "window");
  expect_refused({"--layers", "0", "--map", "none"}, "1 to 4096");
  expect_refused({"--layers", "5000", "--map", "none"}, "1 to 4096");
  expect_refused({"--layers", "four", "--map", "none"}, "four");
  expect_refused({"--layers", "4"}, "--map");
  expect_refused({"--map", "none"}, "--layers");
  expect_refused({"--layers", "4", "--map", "none", "--prompt", "0"}, "prompt");
  expect_refused({"--layers", "4", "--map", "none", "--window", "-1"}, "--window");
  expect_refused({"--layers", "4", "--map", "none", "--dtype", "f16"}, "f16");
  expect_refused({"--layers", "4", "--map", "none", "--kv-heads", "-1", "--head-dim", "8"}, "--kv-heads");
  expect_refused({"--layers", "4", "--map", "none", "--kv-heads", "8"}, "--head-dim");
  expect_refused({"--layers", "4", "--map", "1_1_2_3", "--passes-with-gradient", "0"}, "passes.with_gradient");
  expect_refused({"--layers", "4", "--map", "1_1_2_3", "--passes-without-gradient", "2000000000"}, "0 to 4096");
  expect_refused({"--layers", "4", "--map", "none", "--colour"}, "--colour");
}

TEST_F(KvmapVerb, HelpShowsAnExampleThatWorks) {
  const std::string help = printed({"--help"});
  const std::string mark = "Example: kvloom kvmap ";
  const std::size_t begin = help.find(mark);
  ASSERT_NE(begin, std::string::npos) << help;
  std::istringstream example(help.substr(begin + mark.size(), help.find('\n', begin) - begin - mark.size()));
  Words words;
  for (std::string word; example >> word;) words.push_back(word);
  EXPECT_THAT(printed(words), HasSubstr("KV cache"));
}

}  // namespace
}  // namespace kvloom
