// kvloom inspect on models: what a folder of Hugging Face holds, whether a checkpoint is sound, how two models differ.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/support/huggingface_folder.h"
#include "tests/support/process.h"

namespace kvloom {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

const fs::path kFixtures = fs::path(KVLOOM_SOURCE_DIR) / "tests/fixtures/huggingface";

class InspectModel : public ::testing::Test {
 protected:
  test::ProcessResult kvloom(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), KVLOOM_BINARY);
    test::ProcessOptions options;
    options.folder = folder_.path();
    return test::run_process(std::move(arguments), options);
  }

  nlohmann::json json_of(const std::vector<std::string>& arguments) const {
    const test::ProcessResult result = kvloom(arguments);
    EXPECT_EQ(result.status, 0) << result.error;
    return nlohmann::json::parse(result.output);
  }

  test::Random random_;
  TemporaryFolder folder_;
};

TEST_F(InspectModel, DescribesAFolderOfHuggingFaceAndChecksItsShapes) {
  const auto model = json_of({"inspect", kFixtures / "qwen2-tied-window", "--verify", "--json"});
  EXPECT_EQ(model["kind"], "huggingface");
  EXPECT_EQ(model["family"], "qwen2");
  EXPECT_EQ(model["kv_map"]["explicit"], "0_1s");
  EXPECT_EQ(model["parameters"], 4624);
  EXPECT_EQ(model["shapes"], "as the config has them");
  test::write_huggingface_folder(folder_, "a", test::llama_config(2), DType::kF32, random_);
  folder_.write("a/config.json", test::llama_config(2, "", 32));
  EXPECT_EQ(kvloom({"inspect", "a"}).status, 0);
  EXPECT_THAT(kvloom({"inspect", "a", "--verify"}).error, HasSubstr("model.embed_tokens.weight"));
}

TEST_F(InspectModel, FindsEveryFlippedBitOfACheckpointByFile) {
  ASSERT_EQ(kvloom({"convert", kFixtures / "qwen3", "a", "--tp", "1", "--pp", "2"}).status, 0);
  EXPECT_EQ(json_of({"inspect", "a", "--verify", "--json"})["checksums"], "right");
  for (const char* name : {"shard-0-0.h5", "shard-1-0.h5"}) {
    const std::string whole = read_bytes(folder_ / "a" / name);
    std::string damaged = whole;
    const auto at = static_cast<std::size_t>(random_.integer(0, static_cast<std::int64_t>(whole.size()) - 1));
    damaged[at] = static_cast<char>(damaged[at] ^ (1 << random_.integer(0, 7)));
    folder_.write(std::string("a/") + name, damaged);
    const test::ProcessResult result = kvloom({"inspect", "a", "--verify"});
    EXPECT_EQ(result.status, 2);
    EXPECT_THAT(result.error, HasSubstr(name));
    folder_.write(std::string("a/") + name, whole);
  }
}

TEST_F(InspectModel, FindsDamageAnywhereInAnOutputDirectoryAfterShowingAllOfIt) {
  ASSERT_EQ(kvloom({"convert", kFixtures / "qwen3", "out/step-00000002"}).status, 0);
  ASSERT_EQ(kvloom({"convert", kFixtures / "qwen3", "out/step-00000004"}).status, 0);
  const std::string shown = kvloom({"inspect", "out", "--verify"}).output;
  for (const std::string step : {"step-00000002", "step-00000004"}) {
    EXPECT_THAT(shown, testing::ContainsRegex("\n  " + step + " +whole [^\n]*checksums right\n"));
  }
  EXPECT_THAT(kvloom({"inspect", "out"}).output, testing::Not(HasSubstr("checksums")));
  EXPECT_EQ(json_of({"inspect", "out", "--verify", "--json"})["latest"], "step-00000004");
  const std::string name = "out/step-00000002/shard-0-0.h5";
  std::string damaged = read_bytes(folder_ / name);
  damaged[damaged.size() / 2] = static_cast<char>(damaged[damaged.size() / 2] ^ 1);
  folder_.write(name, damaged);
  EXPECT_EQ(kvloom({"inspect", "out"}).status, 0) << "sizes are right";
  const test::ProcessResult result = kvloom({"inspect", "out", "--verify"});
  EXPECT_EQ(result.status, 2);
  EXPECT_EQ(result.error_lines(), 1) << result.error;
  EXPECT_THAT(result.error, HasSubstr("1 of 2 checkpoints are damaged"));
  EXPECT_THAT(result.error, HasSubstr(name));
  EXPECT_THAT(result.output, HasSubstr("not whole"));
  EXPECT_THAT(result.output, testing::ContainsRegex("step-00000004 +whole [^\n]*checksums right\n"));
  EXPECT_THAT(result.output, HasSubstr("step-00000004"));
}

TEST_F(InspectModel, ChecksEveryBlockOfATokenFileAndShowsWhatItWasMadeOf) {
  folder_.write("text/one.txt", std::string(3 << 20, 'a'));
  folder_.write("text/two.txt", "a second document");
  ASSERT_EQ(kvloom({"tokenize", "--input", "text", "--output", "tokens.h5"}).status, 0);
  const auto description = json_of({"inspect", "tokens.h5", "--verify", "--json"});
  EXPECT_EQ(description["checksums"], "right");
  ASSERT_EQ(description["sources"].size(), 2u);
  EXPECT_EQ(description["sources"][0]["path"], "text/one.txt");
  EXPECT_EQ(description["sources"][1]["bytes"], 17);
  const test::ProcessResult shown = kvloom({"inspect", "tokens.h5"});
  EXPECT_THAT(shown.output, HasSubstr("not checked"));
  EXPECT_THAT(shown.output, HasSubstr("text/two.txt"));
  std::string bytes = read_bytes(folder_ / "tokens.h5");
  bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
  folder_.write("tokens.h5", bytes);
  EXPECT_EQ(kvloom({"inspect", "tokens.h5"}).status, 0);
  const test::ProcessResult result = kvloom({"inspect", "tokens.h5", "--verify"});
  EXPECT_EQ(result.status, 2);
  EXPECT_EQ(result.error_lines(), 1) << result.error;
  EXPECT_THAT(result.error, HasSubstr("block"));
}

TEST_F(InspectModel, TellsInWhichTensorsTwoModelsDifferAndByHowMuch) {
  test::write_huggingface_folder(folder_, "a", test::llama_config(2), DType::kF32, random_);
  ASSERT_EQ(kvloom({"convert", "a", "same"}).status, 0);
  EXPECT_EQ(json_of({"inspect", "a", "--diff", "same", "--json"})["equal"], true);
  ASSERT_EQ(kvloom({"convert", "a", "shared", "--map", "cla:2", "--kv-init", "average"}).status, 0);
  const auto difference = json_of({"inspect", "a", "--diff", "shared", "--json"});
  EXPECT_EQ(difference["equal"], false);
  EXPECT_EQ(difference["without_match"].size(), 2u);
  std::vector<std::string> differing;
  for (const auto& tensor : difference["tensors"]) {
    if (tensor["differing"] > 0) differing.push_back(tensor["name"]);
  }
  EXPECT_THAT(differing, testing::UnorderedElementsAre("model.layers.0.self_attn.k_proj.weight",
                                                       "model.layers.0.self_attn.v_proj.weight"));
  // Half the distance of the two layers that were averaged.
  test::StoredTensors tensors = test::tensors_at(folder_ / "a");
  const std::vector<double> low = tensors.at("model.layers.0.self_attn.k_proj.weight").values();
  const std::vector<double> high = tensors.at("model.layers.1.self_attn.k_proj.weight").values();
  double largest = 0;
  for (std::size_t i = 0; i < low.size(); ++i) largest = std::max(largest, std::abs(low[i] - high[i]) / 2);
  for (const auto& tensor : difference["tensors"]) {
    if (tensor["name"] == "model.layers.0.self_attn.k_proj.weight") {
      EXPECT_NEAR(tensor["largest"].get<double>(), largest, 1e-6);
    }
  }
}

TEST_F(InspectModel, ShowsTheTenLargestDifferencesUnlessAllAreWanted) {
  const int layers = 4;
  for (const char* name : {"a", "b"}) {
    test::write_huggingface_folder(folder_, name, test::llama_config(layers), DType::kF32, random_);
  }
  const auto tensors = json_of({"inspect", "a", "--diff", "b", "--json"})["tensors"];
  ASSERT_EQ(tensors.size(), 3 + 9 * layers);
  const auto lines_of = [&](const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {"inspect", "a", "--diff", "b"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    std::istringstream text(kvloom(arguments).output);
    std::vector<std::string> lines;
    for (std::string line; std::getline(text, line);) lines.push_back(line);
    return lines;
  };
  const std::vector<std::string> all = lines_of({"--all"});
  ASSERT_EQ(all.size(), tensors.size() + 1);
  EXPECT_EQ(all.back(), fmt::format("0 tensors equal, {} differ, 0 without a match", tensors.size()));
  std::vector<std::string> ten(all.begin(), all.begin() + 10);
  ten.push_back(fmt::format("... and {} more; --all shows them", tensors.size() - 10));
  ten.push_back(all.back());
  EXPECT_EQ(lines_of({}), ten);
  EXPECT_EQ(kvloom({"inspect", "a", "--all"}).status, 2);
}

// Which of the two is named first does not matter, not even where one of them is no number.
TEST_F(InspectModel, FindsTheSameDifferencesWhicheverModelIsNamedFirst) {
  const auto write = [&](const std::string& name, const std::vector<float>& values) {
    const auto count = static_cast<std::int64_t>(values.size());
    SafetensorsWriter writer(folder_ / name, {{"weight", {count}, DType::kF32}});
    writer.append("weight", std::as_bytes(std::span(values)));
    writer.finish();
  };
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  struct Pair {
    std::vector<float> a;
    std::vector<float> b;
    nlohmann::json largest;
    int differing;
  };
  for (const Pair& pair :
       {Pair{{1, kNan, 3}, {1, 2, 3}, "infinite", 1}, Pair{{kNan, 1, 2}, {kNan, 1, 4}, 2.0, 1},
        Pair{{kNan, 1, 2}, {0, kNan, 4}, "infinite", 3}, Pair{{kInfinity, 1}, {kInfinity, 1}, 0.0, 0},
        Pair{{kInfinity, 1}, {-kInfinity, 1}, "infinite", 1}}) {
    write("a.safetensors", pair.a);
    write("b.safetensors", pair.b);
    for (const auto& [one, other] : {std::pair("a.safetensors", "b.safetensors"), {"b.safetensors", "a.safetensors"}}) {
      const auto found = json_of({"inspect", one, "--diff", other, "--json"});
      SCOPED_TRACE(found.dump());
      EXPECT_EQ(found["equal"], pair.differing == 0);
      ASSERT_EQ(found["tensors"].size(), 1u);
      EXPECT_EQ(found["tensors"][0]["largest"], pair.largest);
      EXPECT_EQ(found["tensors"][0]["differing"], pair.differing);
      EXPECT_EQ(found["tensors"][0]["elements"], pair.a.size());
    }
  }
}

TEST_F(InspectModel, SaysOfOtherFilesWhatTheyAre) {
  ASSERT_EQ(kvloom({"convert", kFixtures / "qwen3", "a"}).status, 0);
  folder_.write("run.pbtxt", "train { steps: 3 }\n");
  folder_.write("notes.txt", "a text\n");
  ASSERT_EQ(kvloom({"convert", kFixtures / "qwen3", "--dry-run", "--plan-out", "plan.pbtxt"}).status, 0);
  fs::copy(folder_ / "a/shard-0-0.h5", folder_ / "logits.h5");
  for (const auto& [path, words] : std::vector<std::pair<std::string, std::string>>{
           {"run.pbtxt", "run.pbtxt is a config and describes itself; kvloom train --config run.pbtxt --print-config"},
           {"plan.pbtxt", "plan.pbtxt is a plan of kvloom convert and describes itself; kvloom convert SOURCE --plan"},
           {"logits.h5", "logits.h5 is HDF5 and no token file; what kvloom eval dumps"},
           {"notes.txt", "notes.txt is no token file and no safetensors file; right is also a folder"},
           {"a/manifest.pb", "a/manifest.pb is a part of a checkpoint; inspect its folder, a"},
           {"a/shard-0-0.h5", "a/shard-0-0.h5 is a part of a checkpoint"}}) {
    const test::ProcessResult result = kvloom({"inspect", path});
    EXPECT_EQ(result.status, 2);
    EXPECT_EQ(result.error_lines(), 1) << result.error;
    EXPECT_THAT(result.error, HasSubstr(words));
  }
}

}  // namespace
}  // namespace kvloom
