// The model that kvloom eval asks, and the options that say how it is held and asked.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "infer/evaluation/scorer.h"
#include "launch/rank_device.h"
#include "train/loaded_model.h"

namespace kvloom {

// What every form of kvloom eval takes.
struct EvalModelOptions {
  std::string checkpoint;
  std::string precision = "f32";
  std::string weights;   // empty: as --precision computes
  std::string kv_dtype;  // likewise
  RankDeviceOptions device;
  std::optional<int> passes;
  bool sequential = false;
  std::optional<std::int64_t> limit;
  bool json = false;

  void add_to(CLI::App& verb);
  // Throws InputError for what cannot be used whatever the model is.
  void check() const;

  // Whether weights or K/V have fewer bits than --precision computes with.
  bool rounds() const;
  // The same without --weights and --kv-dtype.
  EvalModelOptions unrounded() const;
  std::string weights_name() const { return weights.empty() ? precision : weights; }
  std::string kv_name() const { return kv_dtype.empty() ? precision : kv_dtype; }

  // The passes that `manifest` names, or those of --passes.
  ScoringOptions scoring(const proto::Manifest& manifest) const;
};

// What of the model is in memory: weights as inference holds them, or with masters, which GPUs and gradients take.
class EvalModel {
 public:
  // On a CPU as inference holds it, on a GPU as training does. The allocator outlives it. Throws InputError naming what
  // cannot be used.
  EvalModel(const EvalModelOptions& options, Allocator& allocator);

  const proto::Manifest& manifest() const { return held_.model ? held_.manifest : trained_.manifest; }
  const Scorer& scorer() const { return *scorer_; }

 private:
  LoadedInferenceModel held_;
  LoadedModel trained_;
  std::unique_ptr<Scorer> scorer_;
};

}  // namespace kvloom
