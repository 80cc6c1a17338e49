// What a folder without usable safetensors holds instead.
#pragma once

#include <filesystem>
#include <string>

namespace kvloom {

// Says in words what else the folder's weights are (PyTorch pickles, an adapter, GGUF, ...) and how safetensors come of
// them; empty where it holds nothing of the kind.
std::string describe_other_weights(const std::filesystem::path& folder);

// Whether a file of that name holds an adapter's weights: changes to a model, and no model.
bool is_adapter_file(const std::string& name);

}  // namespace kvloom
