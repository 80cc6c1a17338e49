// `kvloom inspect A --diff B`: in which tensors two models differ, and by how much.
#pragma once

#include <cstdint>
#include <filesystem>
#include <iosfwd>

namespace kvloom {

enum class InspectForm : std::uint8_t { kText, kJson };

enum class DifferenceLines : std::uint8_t {
  kLargest,  // of tensors that differ, and of those without a match, ten each
  kAll,
};

// Compares the tensors of two checkpoints, output directories, Hugging Face folders or safetensors files, whatever
// their dtypes, and writes lines, largest difference first, with a last one that sums up, or one JSON object, which
// holds every tensor. Throws InputError for anything else.
void inspect_difference(const std::filesystem::path& one, const std::filesystem::path& other, InspectForm form,
                        DifferenceLines lines, std::ostream& out);

}  // namespace kvloom
