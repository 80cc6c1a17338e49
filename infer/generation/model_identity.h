// What tells one model's files from another's.
#pragma once

#include <cstdint>
#include <filesystem>

namespace kvloom {

// Of a checkpoint, or the one of an output directory that would be taken now: of its manifest, which has the checksums
// of all weights. Of a Hugging Face folder: of its weights, configuration and tokenizer, every byte of which is read.
// Throws InputError when they cannot be read.
std::uint64_t model_identity(const std::filesystem::path& path);

}  // namespace kvloom
