// Damaged input is refused with one line or taken: never a crash, never another exception. KVLOOM_FUZZ_SECONDS=60,
// or KVLOOM_FUZZ_RUNS=1000000, digs deeper than a test run does.
#include <google/protobuf/stubs/logging.h>
#include <gtest/gtest.h>

#include <array>

#include "core/checkpoint_manifest.h"
#include "core/checksum.h"
#include "core/config.h"
#include "core/convert/tensor_source.h"
#include "core/kv_map.h"
#include "core/safetensors.h"
#include "data/token_file.h"
#include "tests/support/mutate.h"
#include "tests/support/temporary_folder.h"

namespace kvloom {
namespace {

constexpr const char* kConfig =
    "model { layers: 4 hidden: 32 ffn: 48 heads: 4 kv_heads: 2 vocab: 257 context: 32 kv_map: \"0_2s_2_3\" window: 5\n"
    "  rope_scaling { kind: LLAMA3 factor: 8 low_frequency_factor: 1 high_frequency_factor: 4 } }\n"
    "passes { without_gradient: 2 with_gradient: 2 }\ndata { tokens: \"tokens.h5\" }\n"
    "train { steps: 20 global_batch: 4 micro_batch: 2 learning_rate: 3e-3 precision: BF16 seed: 3 }\n";

TEST(Fuzz, KvMaps) {
  test::Random random;
  test::fuzz({"0_10_10s_3", "sandwich-middle:3", "lasagna-three-quarter:2", "yoco:4", "cla:2", "last-shared:3", "none",
              "0_1:0_3:2s_3", "fused-lite:3"},
             random, [&](const std::string& text) {
               const int layers = static_cast<int>(random.integer(-1, 12));
               const KvMap map = KvMap::parse(text, layers, random.integer(-2, 4));
               EXPECT_EQ(map.layers(), layers);
             });
}

TEST(Fuzz, RunConfigs) {
  test::Random random;
  test::fuzz({kConfig}, random, [](const std::string& text) { parse_run_config("run.pbtxt", text, {}); });
}

TEST(Fuzz, Overrides) {
  test::Random random;
  test::fuzz({"train.steps=3", "model.kv_map=sandwich-top:2", "model.rope_scaling.kind=YARN", "data.tokens=\"a b\""},
             random,
             [](const std::string& text) { parse_run_config("run.pbtxt", kConfig, std::vector<std::string>{text}); });
}

std::string sealed(const std::string& manifest) {
  proto::SealedManifest seal;
  seal.set_manifest(manifest);
  seal.set_checksum(checksum(std::as_bytes(std::span(manifest))));
  return seal.SerializeAsString();
}

TEST(Fuzz, Manifests) {
  const google::protobuf::LogSilencer no_complaints_about_utf8;
  test::Random random;
  proto::Manifest manifest;
  manifest.set_format(1);
  *manifest.mutable_model() = parse_run_config("run.pbtxt", kConfig, {}).model();
  proto::ShardFile& file = *manifest.add_files();
  file.set_name("shard-0-0.h5");
  file.set_bytes(100);
  proto::TensorEntry& tensor = *manifest.add_tensors();
  tensor.set_name("a");
  tensor.set_dtype("f32");
  tensor.add_shape(4);
  proto::Slice& slice = *tensor.add_slices();
  slice.add_offset(0);
  slice.add_shape(4);
  slice.set_dataset("a");
  const std::string plain = manifest.SerializeAsString();
  test::fuzz({sealed(plain)}, random, [](const std::string& bytes) { unseal_manifest(bytes, "manifest.pb"); });
  // Damage under a right seal, as someone may forge it.
  test::fuzz({plain}, random, [](const std::string& bytes) { unseal_manifest(sealed(bytes), "manifest.pb"); });
}

TEST(Fuzz, SafetensorsHeaders) {
  test::Random random;
  const std::string json = R"({"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"__metadata__":{"x":"y"}})";
  test::fuzz({json}, random, [](const std::string& header) { parse_safetensors_header(header, 16, "x.safetensors"); });
}

std::string safetensors_of(const std::string& json, const std::string& data) {
  std::string bytes;
  for (std::size_t i = 0; i < 8; ++i) bytes.push_back(static_cast<char>((json.size() >> (8 * i)) & 0xff));
  return bytes + json + data;
}

TEST(Fuzz, SafetensorsFiles) {
  test::Random random;
  const TemporaryFolder folder;
  const std::string json = R"({"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}})";
  test::fuzz({safetensors_of(json, "0123456789abcdef")}, random, [&](const std::string& bytes) {
    const SafetensorsFile file(folder.write("x.safetensors", bytes));
    for (const SafetensorsEntry& entry : file.tensors()) EXPECT_EQ(file.data(entry).size(), entry.bytes);
  });
}

TEST(Fuzz, SafetensorsIndexes) {
  test::Random random;
  const TemporaryFolder folder;
  for (const char* name : {"a", "b"}) {
    const std::string json = std::string("{\"") + name + R"(":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})";
    folder.write(name + std::string(".safetensors"), safetensors_of(json, "01"));
  }
  const std::string index = R"({"metadata":{"total_size":4},"weight_map":{"a":"a.safetensors","b":"b.safetensors"}})";
  test::fuzz({index}, random, [&](const std::string& text) {
    folder.write(kSafetensorsIndex, text);
    const auto source = open_safetensors(folder.path());
    for (const SourceTensor& tensor : source->tensors()) {
      std::array<std::byte, 2> bytes{};
      source->read(tensor, {{0}, {2}}, bytes);
      EXPECT_EQ(bytes[1], std::byte{'1'});
    }
  });
}

TEST(Fuzz, TokenFiles) {
  test::Random random;
  const TemporaryFolder folder;
  {
    TokenFileWriter writer(folder / "tokens.h5", {.vocab = 257, .tokenizer_kind = "bytes", .tokenizer_model = "m"});
    writer.begin_document(Part::kTraining);
    writer.append(Part::kTraining, random.tokens(3000, 257), 3000);
    writer.finish();
  }
  test::fuzz({read_bytes(folder / "tokens.h5")}, random, [&](const std::string& bytes) {
    folder.write("damaged.h5", bytes);
    const TokenFile file(folder / "damaged.h5");
    std::vector<std::int32_t> tokens(static_cast<std::size_t>(file.count(Part::kTraining)));
    file.read(Part::kTraining, 0, tokens);
    file.tokenizer_model();
    file.provenance();
  });
}

}  // namespace
}  // namespace kvloom
