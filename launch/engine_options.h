// The options of verbs that run the inference engine.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>

#include "core/inference_model.h"
#include "infer/engine/engine.h"

namespace kvloom {

class EngineOptionSet {
 public:
  // `defaults` are what is taken, and shown by --help, where an option is not given.
  explicit EngineOptionSet(EngineOptions defaults = {});

  void add_to(CLI::App& verb);

  // Of weights and hidden states. Throws InputError naming the option that cannot be used.
  InferenceFormat format() const;
  // K and V are kept as --precision computes unless --kv-dtype says otherwise. Throws InputError likewise; what depends
  // on the model is the engine's to check.
  EngineOptions options() const;

  // Whether the option was given; its name has no dashes.
  bool was_given(const std::string& name) const;

 private:
  EngineOptions options_;
  std::string precision_ = "f32";
  std::string weights_;
  std::string kv_dtype_;
  std::string kv_memory_;
  std::string swap_memory_;
  std::string prefix_cache_;
  std::string reuse_generated_;
  const CLI::App* verb_ = nullptr;
};

// Throws InputError for any other than the CPU, where the engine runs so far.
void require_cpu(const std::string& device);

}  // namespace kvloom
