// Hugging Face folders of random weights for tests, and what tensors a model is made of, read back whole.
#pragma once

#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "core/convert/model_source.h"
#include "core/convert/plan.h"
#include "core/parameters.h"
#include "core/safetensors.h"
#include "tests/support/random.h"
#include "tests/support/temporary_folder.h"

namespace kvloom::test {

struct StoredTensor {
  Shape shape;
  std::string dtype;
  std::string bytes;

  friend bool operator==(const StoredTensor&, const StoredTensor&) = default;

  std::vector<double> values() const {
    const auto count = static_cast<std::size_t>(element_count(shape));
    const DType stored = dtype == "f32" ? DType::kF32 : dtype == "bf16" ? DType::kBF16 : DType::kF16;
    std::vector<float> floats(count);
    cast_elements(reinterpret_cast<const std::byte*>(bytes.data()), stored, reinterpret_cast<std::byte*>(floats.data()),
                  DType::kF32, static_cast<std::int64_t>(count));
    return {floats.begin(), floats.end()};
  }
};
using StoredTensors = std::map<std::string, StoredTensor>;

inline StoredTensors tensors_of(TensorSource& source) {
  StoredTensors all;
  for (const SourceTensor& tensor : source.tensors()) {
    StoredTensor stored{tensor.shape, std::string(name_of(*tensor.dtype)), {}};
    stored.bytes.resize(static_cast<std::size_t>(element_count(tensor.shape)) * size_of(*tensor.dtype));
    source.read(tensor, {Shape(tensor.shape.size(), 0), tensor.shape}, std::as_writable_bytes(std::span(stored.bytes)));
    all[tensor.name] = std::move(stored);
  }
  return all;
}

inline StoredTensors tensors_at(const std::filesystem::path& path) {
  return tensors_of(*open_model_source(path).tensors);
}

// config.json of a llama; `more` are further fields: `"head_dim": 8, `.
inline std::string llama_config(int layers, const std::string& more = "", int hidden = 16) {
  return fmt::format(
      "{{{}\"model_type\": \"llama\", \"vocab_size\": 40, \"hidden_size\": {}, \"intermediate_size\": 24, "
      "\"num_hidden_layers\": {}, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, "
      "\"max_position_embeddings\": 32, \"bos_token_id\": 3}}\n",
      more, hidden, layers);
}

inline std::string random_bytes(std::int64_t count, DType dtype, Random& random) {
  const std::vector<float> values = random.normals(static_cast<std::size_t>(count), 0.1);
  std::string bytes(static_cast<std::size_t>(count) * size_of(dtype), '\0');
  cast_elements(reinterpret_cast<const std::byte*>(values.data()), DType::kF32,
                reinterpret_cast<std::byte*>(bytes.data()), dtype, count);
  return bytes;
}

struct ExtraTensor {
  std::string name;
  Shape shape;
};

// Writes the folder: config.json, and every tensor of its model with `extra` ones, of random values.
inline void write_huggingface_folder(const TemporaryFolder& folder, const std::string& name, const std::string& config,
                                     DType dtype, Random& random, const std::vector<ExtraTensor>& extra = {}) {
  folder.write(name + "/config.json", config);
  const ModelConfig model = parse_huggingface_config(config, "config.json").model;
  std::vector<SafetensorsTensor> tensors;
  const ParameterLayout layout(model, ModelShard::whole(model));
  for (const Parameter& parameter : layout.all()) tensors.push_back({parameter.name, parameter.global_shape, dtype});
  for (const ExtraTensor& tensor : extra) tensors.push_back({tensor.name, tensor.shape, dtype});
  SafetensorsWriter writer(folder / name / "model.safetensors", tensors);
  for (const SafetensorsTensor& tensor : tensors) {
    const std::string bytes = random_bytes(element_count(tensor.shape), dtype, random);
    writer.append(tensor.name, std::as_bytes(std::span(bytes)));
  }
  writer.finish();
}

}  // namespace kvloom::test
