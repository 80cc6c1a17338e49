// `kvloom inspect PATH`: what a checkpoint, a run's output directory, a model of Hugging Face, a safetensors file or a
// token file holds.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <iosfwd>
#include <nlohmann/json_fwd.hpp>

#include "core/checkpoint_verify.h"

namespace kvloom {

enum class InspectForm : std::uint8_t { kText, kJson };
enum class InspectDepth : std::uint8_t {
  kContents,   // believes file sizes and the manifest's checksum
  kChecksums,  // reads everything and checks every checksum
};

struct InspectRequest {
  std::filesystem::path path;
  InspectForm form = InspectForm::kText;
  InspectDepth depth = InspectDepth::kContents;
  // Describes a token file: an object whose fields become the lines of the text. Token files belong to train/.
  std::function<nlohmann::ordered_json(const std::filesystem::path&, InspectDepth)> describe_token_file;
};

// Runs a check of checksums with as many threads as there are cores, showing on a terminal how far it is.
using VerifyProgressCall = std::function<void(const VerifyProgress&)>;
void with_verify_progress(const std::function<void(int threads, const VerifyProgressCall& progress)>& work);

// Writes the description to `out`: lines for people, or one JSON object whose "kind" is "checkpoint", "output",
// "huggingface", "safetensors" or "tokens". Throws InputError when the path is none of these or is damaged; where
// checksums are wanted, also after describing an output directory of which a checkpoint is damaged.
void inspect(const InspectRequest& request, std::ostream& out);

}  // namespace kvloom
