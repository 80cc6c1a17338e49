// What the benchmarks' command lines have in common.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "launch/bench_form.h"
#include "launch/rank_device.h"
#include "proto/model.pb.h"
#include "proto/run.pb.h"

namespace kvloom {

inline constexpr std::int64_t kMostSequences = std::int64_t{1} << 20;     // of a step, as train.global_batch
inline constexpr std::int64_t kMostPromptTokens = std::int64_t{1} << 23;  // with the steps within the largest context
inline constexpr int kMostSteps = 1 << 20;

// A model, and where and how it is computed.
struct BenchOptions {
  std::uint32_t layers = 12, hidden = 768, ffn = 2048, heads = 12, kv_heads = 6, vocab = 32000;
  std::uint32_t window = 0;
  std::string precision = "f32";
  RankDeviceOptions device;
  std::vector<std::string> maps;  // empty: the benchmark's own
  bool json = false;

  void add_model_to(CLI::App& verb);
  void add_device_to(CLI::App& verb);
  void add_maps_to(CLI::App& verb);

  proto::ModelConfig model() const {
    proto::ModelConfig model;
    model.set_layers(layers);
    model.set_hidden(hidden);
    model.set_ffn(ffn);
    model.set_heads(heads);
    model.set_kv_heads(kv_heads);
    model.set_vocab(vocab);
    if (window > 0) model.set_window(window);
    return model;
  }
  BenchForm form() const { return json ? BenchForm::kJson : BenchForm::kText; }
  proto::TrainConfig::Precision compute() const {
    return precision == "bf16" ? proto::TrainConfig::BF16 : proto::TrainConfig::F32;
  }
};

// Those that were asked for, or "none" and of `usual` those that a model of so many layers can have.
std::vector<std::string> maps_of(const BenchOptions& options, const std::vector<std::string>& usual);

void add_bench_serve(CLI::App& bench);

}  // namespace kvloom
