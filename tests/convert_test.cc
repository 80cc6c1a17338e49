// kvloom convert, as a user runs it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <thread>

#include "core/checkpoint_reader.h"
#include "core/convert/plan_models.h"
#include "data/token_file.h"
#include "infer/tokenizer.h"
#include "proto/tokenizer.pb.h"
#include "tests/support/huggingface_folder.h"
#include "tests/support/process.h"
#include "tests/support/tiny_run.h"
#include "tests/support/tokenizer_fixture.h"

namespace kvloom {
namespace {

namespace fs = std::filesystem;
using test::StoredTensors;
using ::testing::AllOf;
using ::testing::HasSubstr;
using Words = std::vector<std::string>;

const fs::path kFixtures = fs::path(KVLOOM_SOURCE_DIR) / "tests/fixtures/huggingface";

class Convert : public ::testing::Test {
 protected:
  test::ProcessResult kvloom(std::vector<std::string> arguments, test::ProcessOptions options = {}) const {
    arguments.insert(arguments.begin(), KVLOOM_BINARY);
    options.folder = folder_.path();
    return test::run_process(std::move(arguments), options);
  }

  void convert(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), "convert");
    const test::ProcessResult result = kvloom(arguments);
    ASSERT_EQ(result.status, 0) << result.error;
  }

  std::string refusal(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), "convert");
    const test::ProcessResult result = kvloom(arguments);
    EXPECT_EQ(result.status, 2) << result.error;
    EXPECT_EQ(result.error_lines(), 1) << result.error;
    return result.error;
  }

  test::Random random_;
  TemporaryFolder folder_;
};

TEST_F(Convert, ThereAndBackEveryTensorAndTheConfigAreByteIdentical) {
  for (const char* name : {"llama-heads-1", "llama-heads-2", "llama-heads-all", "llama-tied", "qwen2-tied-window",
                           "qwen3", "mistral-window", "llama-yarn-all-fields"}) {
    const fs::path source = kFixtures / name;
    const std::string own = std::string(name) + ".kvloom";
    const std::string back = std::string(name) + ".hf";
    convert({source, own});
    convert({own, back, "--shard-gb", "0.000004"});
    EXPECT_EQ(test::tensors_at(folder_ / own), test::tensors_at(source)) << name;
    EXPECT_EQ(test::tensors_at(folder_ / back), test::tensors_at(source)) << name;
    EXPECT_TRUE(fs::exists(folder_ / back / kSafetensorsIndex)) << name;
    EXPECT_EQ(read_bytes(folder_ / back / "config.json"), read_bytes(source / "config.json")) << name;
  }
}

// A model as it comes from Hugging Face, with a tokenizer that the reference made. The folder's name, of llama_config.
void write_model_with_tokenizer(const TemporaryFolder& folder, const std::string& name, test::Random& random) {
  std::string config = test::llama_config(2);
  const std::int64_t vocab = load_huggingface(test::tokenizer_fixtures() / "llama2")->vocab();
  config.replace(config.find("40"), 2, std::to_string(vocab));
  test::write_huggingface_folder(folder, name, config, DType::kBF16, random);
  for (const char* file : {"tokenizer.json", "tokenizer_config.json"}) {
    folder.write(name + "/" + file, read_bytes(test::tokenizer_fixtures() / "llama2" / file));
  }
  folder.write(name + "/special_tokens_map.json", R"({"bos_token": "<s>", "eos_token": "</s>"})");
  folder.write(name + "/chat_template.jinja", "{{ messages }}");
  folder.write(name + "/LICENSE.txt", "Do as you like.");
}

constexpr std::array kTokenizerFileNames = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                                            "chat_template.jinja"};

TEST_F(Convert, TokenizerAndLicenceComeBackAndWhatDoesNotIsListed) {
  write_model_with_tokenizer(folder_, "a", random_);
  folder_.write("a/pytorch_model.bin", "old");
  const test::ProcessResult result = kvloom({"convert", "a", "b"});
  EXPECT_THAT(result.output, HasSubstr("files not taken along: pytorch_model.bin\n"));
  EXPECT_THAT(result.output, HasSubstr("config fields kept as they are: bos_token_id\n"));
  convert({"b", "c"});
  for (const char* name : kTokenizerFileNames) {
    EXPECT_EQ(read_bytes(folder_ / "c" / name), read_bytes(folder_ / "a" / name)) << name;
  }
  for (const char* name : {"LICENSE.txt", "config.json"}) {
    EXPECT_EQ(read_bytes(folder_ / "c" / name), read_bytes(folder_ / "a" / name)) << name;
  }
}

TEST_F(Convert, AnImportedModelSpeaksItsTokenizerAndTakesItBackOut) {
  write_model_with_tokenizer(folder_, "a", random_);
  const auto tokenizer = load_huggingface(folder_ / "a");
  convert({"a", "b"});
  const proto::Manifest manifest = CheckpointReader(folder_ / "b").manifest();
  EXPECT_EQ(manifest.tokenizer_kind(), tokenizer->kind());
  EXPECT_EQ(manifest.tokenizer(), tokenizer->serialized()) << "what tokenize stores";
  const test::ProcessResult spoken = kvloom({"generate", "--checkpoint", "b", "--prompt", "a word", "--json"});
  ASSERT_EQ(spoken.status, 0) << spoken.error;
  EXPECT_EQ(nlohmann::json::parse(spoken.output)["prompt_tokens"], 1 + tokenizer->encode("a word").size());
  const auto likeliest = [&](const std::string& model) {
    const test::ProcessResult result =
        kvloom({"generate", "--checkpoint", model, "--prompt", "a word", "--temperature", "0", "--json"});
    EXPECT_EQ(result.status, 0) << result.error;
    return nlohmann::json::parse(result.output)["tokens"];
  };
  EXPECT_EQ(likeliest("a"), likeliest("b")) << "a folder of Hugging Face needs no conversion";
  convert({"b", "c"});
  folder_.write("text.txt", std::string(4000, 'a') + " few words\n");
  for (const std::string name : {"a", "c"}) {
    const test::ProcessResult tokens =
        kvloom({"tokenize", "--input", "text.txt", "--tokenizer", "hf:" + name, "--output", name + ".h5"});
    ASSERT_EQ(tokens.status, 0) << tokens.error;
  }
  EXPECT_EQ(TokenFile(folder_ / "c.h5").identity(), TokenFile(folder_ / "a.h5").identity());
}

TEST_F(Convert, AManifestsTokenizerFilesStayInsideOfTheFolder) {
  test::write_huggingface_folder(folder_, "a", test::llama_config(1), DType::kF32, random_);
  ModelSource source = open_model_source(folder_ / "a");
  proto::TokenizerFiles files;
  files.add_files()->set_name("../tokenizer.json");
  source.manifest.emplace();
  source.manifest->set_tokenizer_kind("huggingface");
  source.manifest->set_tokenizer(files.SerializeAsString());
  const TargetModel target{
      .form = ModelForm::kHuggingFace, .model = source.model, .passes = source.passes, .family = "llama", .dtype = {}};
  EXPECT_THROW(huggingface_files(source, target, DType::kF32), InputError);
}

TEST_F(Convert, AConvertedModelEncodesAsTheTokenizerItCameWith) {
  test::write_huggingface_folder(folder_, "a", test::llama_config(2), DType::kBF16, random_);
  for (const char* name : {"tokenizer.json", "tokenizer_config.json"}) {
    fs::copy(fs::path(KVLOOM_SOURCE_DIR) / "tests/fixtures/tokenizers/llama2" / name, folder_ / "a" / name);
  }
  convert({"a", "b"});
  const CheckpointReader reader(folder_ / "b");
  const auto tokenizer = make_tokenizer(reader.manifest().tokenizer_kind(), reader.manifest().tokenizer(), "b");
  const auto original = load_huggingface(folder_ / "a");
  EXPECT_EQ(tokenizer->serialized(), original->serialized());
  EXPECT_EQ(tokenizer->encode("It goes where the model goes."), original->encode("It goes where the model goes."));
}

// The definition, computed here from the source's tensors.
std::vector<double> mean_of(const StoredTensors& tensors, const std::vector<int>& layers, const std::string& rest) {
  std::vector<double> mean;
  for (const int layer : layers) {
    const std::vector<double> values = tensors.at(fmt::format("model.layers.{}.{}", layer, rest)).values();
    mean.resize(values.size(), 0);
    for (std::size_t i = 0; i < values.size(); ++i) mean[i] += values[i];
  }
  for (double& value : mean) value /= static_cast<double>(layers.size());
  return mean;
}

TEST_F(Convert, CopyAndAverageAreTheWeightsDefinedForTheNineMaps) {
  const std::string config = R"({"model_type": "qwen2", "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 7, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32})";
  test::write_huggingface_folder(folder_, "a", config, DType::kF32, random_);
  const StoredTensors before = test::tensors_at(folder_ / "a");
  for (const char* partition : {"pizza", "sandwich", "lasagna"}) {
    for (const char* position : {"bottom", "middle", "top"}) {
      const std::string map = fmt::format("{}-{}:{}", partition, position, random_.integer(1, 6));
      for (const char* init : {"copy", "average"}) {
        const std::string target = fmt::format("{}-{}", map, init);
        convert({"a", target, "--map", map, "--kv-init", init});
        const StoredTensors after = test::tensors_at(folder_ / target);
        const KvMap sources = KvMap::parse(map, 7);
        std::size_t kv_tensors = 0;
        for (const auto& [name, tensor] : after) {
          const std::size_t part = name.find("self_attn.");
          const bool key_value = part != name.npos && (name[part + 10] == 'k' || name[part + 10] == 'v');
          if (!key_value) {
            EXPECT_EQ(tensor, before.at(name)) << target << " " << name;
            continue;
          }
          ++kv_tensors;
          const int layer = name[13] - '0';
          const auto readers = sources.readers(KvPart::kKey, layer);
          const std::vector<int> from =
              init == std::string("copy") ? std::vector<int>{layer} : std::vector<int>(readers.begin(), readers.end());
          const std::vector<double> mean = mean_of(before, from, name.substr(part));
          std::vector<double> rounded;
          for (const double value : mean) rounded.push_back(static_cast<double>(static_cast<float>(value)));
          EXPECT_EQ(tensor.values(), rounded) << target << " " << name;
        }
        EXPECT_EQ(kv_tensors, 4 * sources.kv_layers().size()) << target;
      }
    }
  }
}

TEST_F(Convert, AMapOnTopOfAMapStartsFromWhatEachLayerRead) {
  test::write_huggingface_folder(folder_, "a", test::llama_config(6), DType::kF32, random_);
  convert({"a", "b", "--map", "cla:2"});
  convert({"b", "c", "--map", "cla:3", "--kv-init", "average"});
  const StoredTensors a = test::tensors_at(folder_ / "a");
  const StoredTensors c = test::tensors_at(folder_ / "c");
  std::vector<double> rounded;
  for (const double value : mean_of(a, {0, 0, 2}, "self_attn.k_proj.weight")) {
    rounded.push_back(static_cast<double>(static_cast<float>(value)));
  }
  EXPECT_EQ(c.at("model.layers.0.self_attn.k_proj.weight").values(), rounded);
  EXPECT_FALSE(c.contains("model.layers.2.self_attn.k_proj.weight"));
}

TEST_F(Convert, ASharingModelLeavesAsLckvLlamaAndComesBackWithMapAndPasses) {
  const std::string config = test::llama_config(4, R"("sliding_window": 9, "forward_passes": 3, "backward_passes": 1,
    "layer_types": "0s_2s_2_3", )");
  std::string lckv = config;
  lckv.replace(lckv.find("\"llama\""), 7, "\"lckv-llama\"");
  test::write_huggingface_folder(folder_, "a", lckv, DType::kF16, random_);
  convert({"a", "b"});
  convert({"b", "c"});
  EXPECT_EQ(read_bytes(folder_ / "c/config.json"), lckv);
  EXPECT_EQ(test::tensors_at(folder_ / "c"), test::tensors_at(folder_ / "a"));
  // A llama that begins to share becomes one, and its map and window are what was asked for.
  test::write_huggingface_folder(folder_, "plain", test::llama_config(4), DType::kF16, random_);
  convert({"plain", "shared", "--to", "hf", "--map", "0s_3_3_3", "--window", "5"});
  const ModelSource shared = open_model_source(folder_ / "shared");
  EXPECT_EQ(shared.family, "lckv-llama");
  EXPECT_EQ(shared.model.kv_map.explicit_form(), "0s_3_3_3");
  EXPECT_EQ(shared.model.kv_map.window(0), 5);
  EXPECT_EQ(shared.passes.without_gradient, 7);
  EXPECT_THAT(read_bytes(folder_ / "shared/config.json"), HasSubstr("\"bos_token_id\": 3"));
}

TEST_F(Convert, AKvLayerThatReadsAnotherKeepsItsOwnWeights) {
  std::string lckv = test::llama_config(6, R"("layer_types": "3_1_5_5_3_5", )");
  lckv.replace(lckv.find("\"llama\""), 7, "\"lckv-llama\"");
  test::write_huggingface_folder(folder_, "a", lckv, DType::kF16, random_);
  convert({"a", "b"});
  convert({"b", "c", "--to", "hf"});
  EXPECT_EQ(test::tensors_at(folder_ / "b"), test::tensors_at(folder_ / "a"));
  EXPECT_EQ(test::tensors_at(folder_ / "c"), test::tensors_at(folder_ / "a"));
  convert({"a", "d", "--map", "none"});
  const StoredTensors a = test::tensors_at(folder_ / "a");
  const StoredTensors d = test::tensors_at(folder_ / "d");
  const std::vector<int> own_or_read = {3, 1, 5, 3, 3, 5};
  for (std::size_t layer = 0; layer < own_or_read.size(); ++layer) {
    const auto key = [](auto of) { return fmt::format("model.layers.{}.self_attn.k_proj.weight", of); };
    EXPECT_EQ(d.at(key(layer)), a.at(key(own_or_read[layer]))) << layer;
  }
}

TEST_F(Convert, ReadersKeepTheirWindowsUnderAnotherMap) {
  convert({kFixtures / "mistral-window", "b", "--map", "cla:2"});
  EXPECT_EQ(open_model_source(folder_ / "b").model.kv_map.explicit_form(), "0s_0s");
  convert({kFixtures / "mistral-window", "c", "--map", "cla:2", "--window", "0"});
  EXPECT_EQ(open_model_source(folder_ / "c").model.kv_map.explicit_form(), "0_0");
}

TEST_F(Convert, MissingAndStrangeTensorsAreErrorsByName) {
  test::write_huggingface_folder(folder_, "strange", test::llama_config(2), DType::kF32, random_,
                                 {{"model.layers.0.mlp.extra.weight", {3}}});
  EXPECT_THAT(refusal({"strange", "b"}), HasSubstr("model.layers.0.mlp.extra.weight"));
  const test::ProcessResult dry = kvloom({"convert", "strange", "--dry-run"});
  EXPECT_THAT(dry.output, HasSubstr("in the source and without a place: model.layers.0.mlp.extra.weight\n"));
  EXPECT_EQ(dry.status, 2);
  test::write_huggingface_folder(folder_, "short", test::llama_config(2), DType::kF32, random_);
  folder_.write("short/config.json", test::llama_config(3));
  EXPECT_THAT(refusal({"short", "b"}), HasSubstr("model.layers.2."));
  test::write_huggingface_folder(folder_, "narrow", test::llama_config(2), DType::kF32, random_);
  folder_.write("narrow/config.json", test::llama_config(2, "", 32));
  EXPECT_THAT(refusal({"narrow", "b"}), HasSubstr("model.embed_tokens.weight"));
  EXPECT_FALSE(fs::exists(folder_ / "b"));
  // What by design goes nowhere is listed, with the reason.
  test::write_huggingface_folder(folder_, "old", test::llama_config(2), DType::kF32, random_,
                                 {{"model.layers.0.self_attn.rotary_emb.inv_freq", {2}}});
  EXPECT_THAT(kvloom({"convert", "old", "b"}).output, HasSubstr("left over, it follows from the config: model.layers"));
}

TEST_F(Convert, ABiasOfTheOutputProjectionMustBeZero) {
  const std::string config = test::llama_config(1, "\"attention_bias\": true, ");
  test::write_huggingface_folder(folder_, "a", config, DType::kF32, random_,
                                 {{"model.layers.0.self_attn.o_proj.bias", {16}}});
  EXPECT_THAT(refusal({"a", "b"}), HasSubstr("o_proj.bias is not zero"));
  EXPECT_FALSE(fs::exists(folder_ / "b"));
}

TEST_F(Convert, AnIndexThatLiesIsRefusedByName) {
  const fs::path source = kFixtures / "llama-heads-2";
  fs::copy(source, folder_ / "a");
  fs::permissions(folder_ / "a", fs::perms::owner_all);
  const nlohmann::json index = nlohmann::json::parse(read_bytes(source / kSafetensorsIndex));
  const auto write = [&](const std::function<void(nlohmann::json&)>& change) {
    nlohmann::json changed = index;
    change(changed);
    folder_.write("a/" + std::string(kSafetensorsIndex), changed.dump());
  };
  const auto refused = [&](const std::function<void(nlohmann::json&)>& change) {
    write(change);
    return refusal({"a", "b"});
  };
  const std::string first = index["weight_map"].begin().key();
  EXPECT_THAT(refused([&](auto& j) { j["weight_map"][first] = "../x.safetensors"; }), HasSubstr("../x.safetensors"));
  EXPECT_THAT(refused([&](auto& j) { j["weight_map"][first] = "none.safetensors"; }), HasSubstr("none.safetensors"));
  EXPECT_THAT(refused([&](auto& j) { j["weight_map"][first] = 7; }), HasSubstr(first));
  EXPECT_THAT(refused([&](auto& j) { j.erase("weight_map"); }), HasSubstr("weight_map"));

  // What the files hold counts.
  const auto taken = [&](const std::string& target, const std::function<void(nlohmann::json&)>& change) {
    write(change);
    const test::ProcessResult result = kvloom({"convert", "a", target});
    EXPECT_EQ(result.status, 0) << result.error;
    EXPECT_EQ(test::tensors_at(folder_ / target), test::tensors_at(source));
    return result.error;
  };
  EXPECT_THAT(taken("c", [&](auto& j) { j["weight_map"].erase(first); }),
              HasSubstr("does not name the right file of 1 tensors: " + first));
  EXPECT_THAT(taken("d", [&](auto& j) { j["weight_map"]["rotary.inv_freq"] = j["weight_map"][first]; }),
              HasSubstr("names, and no file has, of 1 tensors: rotary.inv_freq"));
}

TEST_F(Convert, ATensorInTwoFilesIsRefused) {
  test::write_huggingface_folder(folder_, "a", test::llama_config(1), DType::kF32, random_);
  fs::rename(folder_ / "a/model.safetensors", folder_ / "a/one.safetensors");
  fs::copy(folder_ / "a/one.safetensors", folder_ / "a/two.safetensors");
  folder_.write("a/" + std::string(kSafetensorsIndex),
                R"({"weight_map": {"model.norm.weight": "one.safetensors", "lm_head.weight": "two.safetensors"}})");
  EXPECT_THAT(refusal({"a", "b"}), AllOf(HasSubstr("one.safetensors"), HasSubstr("two.safetensors")));
}

TEST_F(Convert, ASingleFileCountsBeforeAnIndex) {
  test::write_huggingface_folder(folder_, "a", test::llama_config(2), DType::kF32, random_);
  const StoredTensors own = test::tensors_at(folder_ / "a");
  test::write_huggingface_folder(folder_, "other", test::llama_config(2), DType::kF32, random_);
  fs::copy(folder_ / "other/model.safetensors", folder_ / "a/model-00001-of-00001.safetensors");
  for (const char* named : {"model-00001-of-00001.safetensors", "model-gone.safetensors"}) {
    folder_.write("a/" + std::string(kSafetensorsIndex),
                  fmt::format(R"({{"weight_map": {{"model.norm.weight": "{}"}}}})", named));
    const std::string target = std::string("b") + named;
    const test::ProcessResult result = kvloom({"convert", "a", target});
    EXPECT_EQ(result.status, 0) << result.error;
    EXPECT_THAT(result.error, HasSubstr("since model.safetensors is beside it"));
    EXPECT_EQ(test::tensors_at(folder_ / target), own);
  }
}

TEST_F(Convert, WhatAFolderHoldsInPlaceOfSafetensorsIsNamed) {
  const auto refused = [&](const std::string& file, const std::string& content = "x") {
    fs::remove_all(folder_ / "a");
    folder_.write("a/config.json", test::llama_config(1));
    folder_.write("a/" + file, content);
    const std::string with_config = refusal({"a", "b"});
    fs::remove(folder_ / "a/config.json");
    if (content == "x") {
      EXPECT_THAT(refusal({"a", "b"}), HasSubstr(file)) << "without config.json";
    }
    return with_config;
  };
  EXPECT_THAT(refused("pytorch_model.bin"), AllOf(HasSubstr("pytorch_model.bin holds pickled"), HasSubstr("python3 -c"),
                                                  HasSubstr("from_pretrained('a'")));
  EXPECT_THAT(refused("pytorch_model-00001-of-00002.bin"), HasSubstr("python3 -c"));
  EXPECT_THAT(refused("pytorch_model.bin.index.json"), HasSubstr("python3 -c"));
  EXPECT_THAT(refused("consolidated.00.pth"), HasSubstr("Meta's own form"));
  EXPECT_THAT(refused("adapter_model.safetensors"), HasSubstr("adapter (LoRA)"));
  EXPECT_THAT(refused("adapter_model.bin"), HasSubstr("merge_and_unload"));
  EXPECT_THAT(refused("model-Q4_K_M.gguf"), HasSubstr("is GGUF"));
  EXPECT_THAT(refused("tf_model.h5"), HasSubstr("TensorFlow"));
  const std::string pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n";
  EXPECT_THAT(refused("model.safetensors", pointer), HasSubstr("model.safetensors is a pointer of Git LFS"));
  EXPECT_THAT(refused("model.safetensors.index.json", pointer), HasSubstr("git lfs pull"));
  EXPECT_THAT(refused("config.json", pointer), HasSubstr("config.json is a pointer of Git LFS"));
}

TEST_F(Convert, TensorsOfAnotherPrefixAreNamedAsSuch) {
  test::write_huggingface_folder(folder_, "a", test::llama_config(1), DType::kF32, random_);
  std::string file = read_bytes(folder_ / "a/model.safetensors");
  // The names grow by a prefix, and the header with them.
  std::uint64_t length = 0;
  std::memcpy(&length, file.data(), sizeof length);
  nlohmann::ordered_json header = nlohmann::ordered_json::parse(file.substr(8, length));
  nlohmann::ordered_json prefixed;
  for (const auto& [name, entry] : header.items()) {
    prefixed[name == "__metadata__" ? name : "base_model.model." + name] = entry;
  }
  const std::string text = prefixed.dump();
  const std::uint64_t size = text.size();
  folder_.write("a/model.safetensors",
                std::string(reinterpret_cast<const char*>(&size), sizeof size) + text + file.substr(8 + length));
  EXPECT_THAT(refusal({"a", "b"}), HasSubstr("under names that begin with 'base_model.model.'"));
}

// A checkpoint of one tensor with a value beyond f16's largest, 65504.
TEST_F(Convert, ValuesThatWouldBecomeInfiniteAreRefusedByTensor) {
  test::write_huggingface_folder(folder_, "a", test::llama_config(2), DType::kF32, random_);
  std::string file = read_bytes(folder_ / "a/model.safetensors");
  std::uint64_t length = 0;
  std::memcpy(&length, file.data(), sizeof length);
  const nlohmann::json header = nlohmann::json::parse(file.substr(8, length));
  const auto set = [&](const std::string& tensor, std::size_t place, float value) {
    const auto begin = header[tensor]["data_offsets"][0].get<std::size_t>();
    std::memcpy(file.data() + 8 + length + begin + place * sizeof value, &value, sizeof value);
  };
  set("model.norm.weight", 3, 70000);
  set("model.norm.weight", 5, -80000);
  set("model.norm.weight", 6, 65504);
  set("lm_head.weight", 0, 1e30f);
  set("lm_head.weight", 1, std::numeric_limits<float>::infinity());
  folder_.write("a/model.safetensors", file);
  for (const char* form : {"hf", "kvloom"}) {
    const std::string why = refusal({"a", "half", "--dtype", "f16", "--to", form});
    EXPECT_THAT(why, AllOf(HasSubstr("model.norm.weight: 2 values up to 80000"),
                           HasSubstr("lm_head.weight: 1 values up to 1e+30"), HasSubstr("--allow-overflow")));
    EXPECT_FALSE(fs::exists(folder_ / "half"));
  }
  convert({"a", "wide", "--dtype", "bf16"});
  const test::ProcessResult allowed = kvloom({"convert", "a", "half", "--dtype", "f16", "--allow-overflow"});
  EXPECT_EQ(allowed.status, 0) << allowed.error;
  EXPECT_THAT(allowed.error, HasSubstr("warning: values became infinite: lm_head.weight"));
  EXPECT_TRUE(std::isinf(test::tensors_at(folder_ / "half").at("model.norm.weight").values()[3]));
}

TEST_F(Convert, PadsTheVocabularyWithTheMeanOfTheRows) {
  for (const bool tied : {false, true}) {
    const std::string name = tied ? "tied" : "own";
    test::write_huggingface_folder(folder_, name, test::llama_config(1, tied ? "\"tie_word_embeddings\": true, " : ""),
                                   DType::kF32, random_);
    convert({name, name + "-padded", "--pad-vocab", "45"});
    convert({name, name + "-hf", "--pad-vocab", "45", "--to", "hf"});
    const StoredTensors before = test::tensors_at(folder_ / name);
    for (const char* form : {"-padded", "-hf"}) {
      const StoredTensors after = test::tensors_at(folder_ / (name + form));
      EXPECT_EQ(after.size(), before.size());
      EXPECT_EQ(open_model_source(folder_ / (name + form)).model.vocab, 45);
      for (const auto& [tensor, stored] : after) {
        const bool grows = tensor == "model.embed_tokens.weight" || tensor == "lm_head.weight";
        if (!grows) {
          EXPECT_EQ(stored, before.at(tensor)) << tensor;
          continue;
        }
        const std::vector<double> values = stored.values();
        const std::vector<double> old = before.at(tensor).values();
        ASSERT_EQ(stored.shape, (Shape{45, 16}));
        for (std::size_t column = 0; column < 16; ++column) {
          double mean = 0;
          for (std::size_t row = 0; row < 40; ++row) {
            EXPECT_EQ(values[row * 16 + column], old[row * 16 + column]);
            mean += old[row * 16 + column] / 40;
          }
          for (std::size_t row = 40; row < 45; ++row) EXPECT_NEAR(values[row * 16 + column], mean, 1e-6);
        }
      }
    }
  }
  EXPECT_THAT(refusal({"own", "x", "--pad-vocab", "39"}), HasSubstr("has 40 already"));
}

TEST_F(Convert, ATokenizerWithMoreIdsThanTheModelIsWarnedOf) {
  write_model_with_tokenizer(folder_, "a", random_);
  const auto model = static_cast<std::int64_t>(load_huggingface(folder_ / "a")->vocab());
  EXPECT_THAT(kvloom({"convert", "a", "b"}).error, testing::Not(HasSubstr("--pad-vocab")));
  folder_.write("a/added_tokens.json", fmt::format(R"({{"[PAD]": {}}})", model));
  const test::ProcessResult result = kvloom({"convert", "a", "c"});
  EXPECT_EQ(result.status, 0) << result.error;
  EXPECT_THAT(result.error, HasSubstr(fmt::format("--pad-vocab {} adds them", model + 1)));
  const Words generate = {"generate", "--checkpoint", "c", "--max-new-tokens", "1", "--prompt"};
  const auto with = [&](const std::string& prompt) {
    Words words = generate;
    words.push_back(prompt);
    return kvloom(words);
  };
  EXPECT_EQ(with("a word").status, 0);
  EXPECT_THAT(with("a [PAD] word").error, HasSubstr("--pad-vocab"));
  convert({"a", "d", "--pad-vocab", std::to_string(model + 1)});
  EXPECT_EQ(kvloom({"generate", "--checkpoint", "d", "--max-new-tokens", "1", "--prompt", "a [PAD] word"}).status, 0);
}

// Two conversions into one name: one wins, the other is refused, and what stands there is whole.
TEST_F(Convert, TwoConversionsIntoOneTargetNeverDamageIt) {
  const std::string config = R"({"model_type": "llama", "vocab_size": 4096, "hidden_size": 256,
    "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 32})";
  for (const char* name : {"a", "b"}) test::write_huggingface_folder(folder_, name, config, DType::kF32, random_);
  const std::array<StoredTensors, 2> wanted = {test::tensors_at(folder_ / "a"), test::tensors_at(folder_ / "b")};
  for (int round = 0; round < 6; ++round) {
    const bool to_hf = round % 2 == 0;
    std::array<test::ProcessResult, 2> results;
    std::array<TemporaryFolder, 2> elsewhere;
    std::vector<std::thread> writers;
    for (std::size_t i = 0; i < 2; ++i) {
      writers.emplace_back([&, i] {
        test::ProcessOptions options;
        options.folder = elsewhere[i].path();
        results[i] = test::run_process({KVLOOM_BINARY, "convert", (folder_ / (i == 0 ? "a" : "b")).string(),
                                        (folder_ / "t").string(), "--to", to_hf ? "hf" : "kvloom"},
                                       options);
      });
    }
    for (std::thread& writer : writers) writer.join();
    EXPECT_EQ((results[0].status == 0) + (results[1].status == 0), 1) << results[0].error << results[1].error;
    const std::size_t winner = results[0].status == 0 ? 0 : 1;
    EXPECT_EQ(results[1 - winner].status, 2);
    EXPECT_EQ(test::tensors_at(folder_ / "t"), wanted[winner]);
    fs::remove_all(folder_ / "t");
  }
  for (const auto& entry : fs::directory_iterator(folder_.path())) {
    EXPECT_NE(entry.path().filename().string()[0], '.') << entry.path();
  }
}

TEST_F(Convert, AKillMidwayLeavesNothingThatLoadsAndTheNextTryIsWhole) {
  const std::string config = R"({"model_type": "llama", "vocab_size": 16384, "hidden_size": 512,
    "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 32})";
  test::write_huggingface_folder(folder_, "a", config, DType::kF32, random_);
  convert({"a", "whole"});
  for (const auto& [source, target] : {std::pair("a", "b"), std::pair("whole", "c")}) {
    const fs::path partial = folder_ / fmt::format(".{}.partial", target);
    int killed = 0;
    for (int round = 0; round < 4; ++round) {
      test::ProcessOptions options;
      options.signal = {SIGKILL, std::chrono::milliseconds(round == 0 ? 0 : random_.integer(0, 40))};
      options.signal_after = [&] { return fs::exists(partial); };
      if (kvloom({"convert", source, target}, options).status != -SIGKILL) break;
      ++killed;
      EXPECT_FALSE(fs::exists(folder_ / target));
      EXPECT_THROW(open_model_source(folder_ / target), InputError);
    }
    EXPECT_GT(killed, 0);
    fs::remove_all(folder_ / target);
    convert({source, target});
    EXPECT_FALSE(fs::exists(partial));
    EXPECT_EQ(test::tensors_at(folder_ / target), test::tensors_at(folder_ / "a"));
  }
}

TEST_F(Convert, ReplacesNothingThatExists) {
  folder_.write("b/file", "mine");
  EXPECT_THAT(refusal({kFixtures / "qwen2", "b"}), HasSubstr("replaces nothing"));
  EXPECT_EQ(read_bytes(folder_ / "b/file"), "mine");
}

TEST(ConvertTrained, ACheckpointCutForOtherRanksTrainsOnWithTheSameLosses) {
  test::TinyRun run;
  ASSERT_EQ(run.train({"--set", "train.steps=4"}).status, 0);
  const std::string step = "step-00000004";
  fs::create_directory(run / "cut");
  ASSERT_EQ(run.kvloom({"convert", "out/" + step, "cut/" + step, "--tp", "2", "--pp", "2"}).status, 0);
  StoredTensors cut = test::tensors_at(run / "cut");
  EXPECT_EQ(cut, test::tensors_at(run / "out"));
  std::size_t slices = 0;
  const CheckpointReader reader(run / "cut" / step);
  for (const auto& tensor : reader.manifest().tensors()) {
    if (tensor.name() == "model.layers.0.mlp.down_proj.weight") slices = static_cast<std::size_t>(tensor.slices_size());
  }
  EXPECT_EQ(slices, 2u);
  const std::vector<std::string> on = {"--set", "train.steps=8", "--resume", "auto"};
  ASSERT_EQ(run.train(on).status, 0);
  std::vector<std::string> from_cut = on;
  from_cut.insert(from_cut.end(), {"--set", "output.directory=\"cut\""});
  const test::ProcessResult result = run.train(from_cut);
  ASSERT_EQ(result.status, 0) << result.error;
  std::vector<std::string> losses = run.losses("out");
  losses.erase(losses.begin(), losses.end() - 4);
  EXPECT_EQ(run.losses("cut"), losses);
}

TEST_F(Convert, LeavesTheSavesOfARunningTrainingAlone) {
  folder_.write("out/.step-00000020.partial/shard-0-0.h5", "being written");
  for (const char* target : {"out/exported", "out/step-00000004"}) {
    convert({kFixtures / "qwen3", target});
    EXPECT_EQ(read_bytes(folder_ / "out/.step-00000020.partial/shard-0-0.h5"), "being written") << target;
  }
}

TEST(Tokenizers, AreTheSameWhereTheirModelsAreWhateverLiesBeside) {
  const auto carried = [](const std::vector<NamedFile>& files) { return tokenizer_among(files).value(); };
  const CarriedTokenizer plain = carried({{"tokenizer.json", "{}"}});
  EXPECT_TRUE(same_tokenizer(plain, carried({{"tokenizer_config.json", "{}"}, {"tokenizer.json", "{}"}})));
  EXPECT_FALSE(same_tokenizer(plain, carried({{"tokenizer.json", "[]"}})));
  EXPECT_FALSE(same_tokenizer(plain, carried({{"tokenizer.model", "{}"}})));
  EXPECT_FALSE(same_tokenizer(plain, {"bytes", ""}));
  EXPECT_FALSE(same_tokenizer(carried({{"tokenizer.model", "a"}}), carried({{"tokenizer.model", "b"}})));
}

TEST(ConvertTrained, AModelTrainedOnTokensOfHuggingFaceLeavesWithTheirFiles) {
  test::TinyRun run;
  const std::filesystem::path tokenizer = test::tokenizer_fixtures() / "llama2";
  ASSERT_EQ(run.kvloom({"tokenize", "--input", "text.txt", "--tokenizer", "hf:" + tokenizer.string(),
                        "--valid-fraction", "0.1", "--output", "tokens.h5"})
                .status,
            0);
  const std::string vocab = std::to_string(load_huggingface(tokenizer)->vocab());
  ASSERT_EQ(run.train({"--set", "train.steps=2", "--set", "model.vocab=" + vocab}).status, 0);
  ASSERT_EQ(run.kvloom({"convert", "out", "hf", "--to", "hf"}).status, 0);
  for (const char* name : {"tokenizer.json", "tokenizer_config.json"}) {
    EXPECT_EQ(read_bytes(run / "hf" / name), read_bytes(tokenizer / name)) << name;
  }
  EXPECT_EQ(load_huggingface(run / "hf")->serialized(), load_huggingface(tokenizer)->serialized());

  // Trained on with tokens of the same tokenizer, whose folder had nothing beside it.
  fs::create_directory(run / "bare");
  fs::copy(tokenizer / "tokenizer.json", run / "bare");
  ASSERT_EQ(run.kvloom({"tokenize", "--input", "text.txt", "--tokenizer", "hf:bare", "--valid-fraction", "0.1",
                        "--output", "bare.h5"})
                .status,
            0);
  const auto train_on = [&](const std::string& steps) {
    const test::ProcessResult result =
        run.train({"--set", "model.vocab=" + vocab, "--set", "train.steps=" + steps, "--set", "train.start_from=out",
                   "--set", "data.tokens=bare.h5", "--set", "output.directory=more", "--resume", "auto"});
    EXPECT_EQ(result.status, 0) << result.error;
  };
  train_on("2");
  train_on("3");
  ASSERT_EQ(run.kvloom({"convert", "more", "more-hf", "--to", "hf"}).status, 0);
  EXPECT_EQ(read_bytes(run / "more-hf/tokenizer_config.json"), read_bytes(tokenizer / "tokenizer_config.json"));
}

TEST(ConvertTrained, ARunStartsFromAnImportedModelAndKeepsWhereItCameFrom) {
  test::TinyRun run;
  ASSERT_EQ(run.train({"--set", "train.steps=2", "--set", "model.kv_map=none"}).status, 0);
  ASSERT_EQ(run.kvloom({"convert", "out", "hf", "--to", "hf", "--dtype", "bf16"}).status, 0);
  const test::ProcessResult shared = run.kvloom(
      {"convert", "hf", "shared", "--map", "cla:2", "--kv-init", "average", "--data", "tokens.h5", "--json"});
  ASSERT_EQ(shared.status, 0) << shared.error;
  const auto report = nlohmann::json::parse(shared.output);
  EXPECT_EQ(report["to"]["kv_layers"], 2);
  EXPECT_GT(report["evaluation"]["loss_after"], 0);
  std::ofstream(run / "more.pbtxt") << "data { tokens: \"tokens.h5\" }\n"
                                       "train { steps: 2 global_batch: 4 micro_batch: 2 start_from: \"shared\" }\n"
                                       "output { directory: \"more\" }\n";
  const test::ProcessResult more = run.kvloom({"train", "--config", "more.pbtxt"});
  ASSERT_EQ(more.status, 0) << more.error;
  const ModelSource trained = open_model_source(run / "more");
  EXPECT_EQ(trained.family, "llama");
  EXPECT_EQ(trained.model.kv_map.explicit_form(), "0_0_2_2");
  ASSERT_EQ(run.kvloom({"convert", "more", "back", "--to", "hf"}).status, 0);
  EXPECT_EQ(open_model_source(run / "back").family, "lckv-llama");
}

}  // namespace
}  // namespace kvloom
