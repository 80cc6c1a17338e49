// What the user wrote, checked and with its defaults filled in: the one place that knows defaults.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

#include "core/iteration_plan.h"
#include "core/kv_map.h"
#include "proto/model.pb.h"
#include "proto/run.pb.h"

namespace kvloom {

// A model's shape, resolved from proto::ModelConfig: no field means "default" any more.
struct ModelConfig {
  std::int64_t layers = 0;
  std::int64_t hidden = 0;
  std::int64_t ffn = 0;
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t vocab = 0;
  std::int64_t context = 0;
  KvMap kv_map;
  std::int64_t window = 0;
  double rope_theta = 0;
  proto::RopeScaling rope_scaling;
  float norm_epsilon = 0;
  double initializer_range = 0;
  bool tied_embeddings = false;
  bool qkv_bias = false;
  bool qk_norm = false;

  // Throws InputError naming the field, its value and what would be right.
  static ModelConfig from_proto(const proto::ModelConfig& message);
  // Every field written out; from_proto of it gives this config again.
  proto::ModelConfig to_proto() const;
};

Passes passes_of(const proto::PassesConfig& message);

// `text` in Protocol Buffers text format, then each of `overrides` ("train.steps=10"), into a run config with every
// default filled in and everything checked; `train.start_from` then is one checkpoint. `name` stands in messages.
// Throws InputError with file, line and field.
proto::RunConfig parse_run_config(const std::string& name, const std::string& text,
                                  std::span<const std::string> overrides);
proto::RunConfig load_run_config(const std::filesystem::path& path, std::span<const std::string> overrides);

// The text form of a config, as load_run_config reads it.
std::string to_text(const proto::RunConfig& config);
// The same with the fields that are zero, false or empty, and the model's own defaults. What has no value is left out.
std::string to_full_text(const proto::RunConfig& config);

}  // namespace kvloom
