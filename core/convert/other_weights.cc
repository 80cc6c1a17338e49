#include "core/convert/other_weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <system_error>
#include <vector>

namespace kvloom {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> visible_names(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    std::string name = entry->path().filename().string();
    if (name[0] != '.') names.push_back(std::move(name));
  }
  std::ranges::sort(names);
  return names;
}

// In Python's single quotes.
std::string quoted(const std::string& text) {
  std::string quoted;
  for (const char c : text) quoted += c == '\\' || c == '\'' ? std::string("\\") + c : std::string(1, c);
  return quoted;
}

bool is_pickle(const std::string& name) {
  return (name.starts_with("pytorch_model") && (name.ends_with(".bin") || name.ends_with(".bin.index.json"))) ||
         (name.starts_with("consolidated.") && name.ends_with(".pth"));
}

}  // namespace

bool is_adapter_file(const std::string& name) { return name.starts_with("adapter_model."); }

std::string describe_other_weights(const fs::path& folder) {
  const std::vector<std::string> names = visible_names(folder);
  const auto first = [&](auto&& matches) {
    const auto found = std::ranges::find_if(names, matches);
    return found == names.end() ? std::string() : *found;
  };
  if (const std::string name = first(is_pickle); name.ends_with(".pth")) {
    return fmt::format(
        "{} holds Meta's own form of weights; transformers' convert_llama_weights_to_hf.py makes a folder "
        "of safetensors of it",
        name);
  } else if (!name.empty()) {
    return fmt::format(
        "{} holds pickled PyTorch weights, which kvloom does not read; this makes safetensors beside it: python3 -c "
        "\"from transformers import AutoModelForCausalLM as M; M.from_pretrained('{}', "
        "torch_dtype='auto').save_pretrained('{}')\"",
        name, quoted(folder.string()), quoted(folder.string()));
  }
  const auto is_adapters = [](const std::string& name) {
    return is_adapter_file(name) || name == "adapter_config.json";
  };
  if (const std::string name = first(is_adapters); !name.empty()) {
    return fmt::format(
        "{} belongs to an adapter (LoRA), which changes a model and is none; merge it into its model "
        "with peft's merge_and_unload() and save that",
        name);
  }
  if (const std::string name = first([](const std::string& n) { return n.ends_with(".gguf"); }); !name.empty()) {
    return fmt::format("{} is GGUF, which kvloom does not read; get the model's safetensors", name);
  }
  const auto is_foreign = [](const std::string& n) { return n == "tf_model.h5" || n == "flax_model.msgpack"; };
  if (const std::string name = first(is_foreign); !name.empty()) {
    return fmt::format("{} holds weights for TensorFlow or JAX; get the model's safetensors", name);
  }
  return {};
}

}  // namespace kvloom
