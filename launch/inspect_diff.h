// `kvloom inspect A --diff B`: in which tensors two models differ, and by how much.
#pragma once

#include <filesystem>
#include <iosfwd>

#include "launch/inspect.h"

namespace kvloom {

// Compares the tensors of two checkpoints, output directories, Hugging Face folders or safetensors files, whatever
// their dtypes, and writes lines, largest difference first, or one JSON object. Throws InputError for anything else.
void inspect_difference(const std::filesystem::path& one, const std::filesystem::path& other, InspectForm form,
                        std::ostream& out);

}  // namespace kvloom
