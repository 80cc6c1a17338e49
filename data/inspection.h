// What a checkpoint, a run's output directory, a model of Hugging Face, a safetensors file or a token file holds.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <nlohmann/json_fwd.hpp>

#include "core/checkpoint_verify.h"

namespace kvloom {

enum class InspectDepth : std::uint8_t {
  kContents,   // believes file sizes and the manifest's checksum
  kChecksums,  // reads everything and checks every checksum, with as many threads as there are cores
};

struct Inspection {
  InspectDepth depth = InspectDepth::kContents;
  std::function<void(const VerifyProgress&)> progress;  // of checksums; from any thread, one call at a time
};

// One JSON object whose "kind" is "checkpoint", "output", "huggingface", "safetensors" or "tokens". Throws InputError
// when the path is none of these or is damaged; of an output directory, damaged checkpoints are described as such.
nlohmann::ordered_json describe(const std::filesystem::path& path, const Inspection& how);

}  // namespace kvloom
