#include "core/convert/model_source.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <system_error>
#include <utility>

#include "core/checkpoint_folder.h"
#include "core/checkpoint_manifest.h"
#include "core/checkpoint_reader.h"
#include "core/convert/huggingface_origin.h"
#include "core/convert/other_weights.h"
#include "core/file.h"
#include "core/tokenizer_files.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kLargestConfig = std::uint64_t{4} << 20;
constexpr std::uint64_t kLargestCarried = std::uint64_t{64} << 20;

// Tokenizers, how to talk to the model, and under which terms.
bool is_carried(const std::string& name) {
  constexpr std::array kPrefixes = {"LICENSE", "LICENCE", "NOTICE", "USE_POLICY"};
  return name == kGenerationConfig || is_of_tokenizer(name) ||
         std::ranges::any_of(kPrefixes, [&](std::string_view prefix) { return name.starts_with(prefix); });
}

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    names.push_back(entry->path().filename().string());
  }
  if (error) reject_input("cannot list {}: {}", folder.string(), error.message());
  std::ranges::sort(names);
  return names;
}

void collect_files(const fs::path& folder, ModelSource& source) {
  const std::vector<std::string> weights = safetensors_files(folder);
  std::error_code error;
  for (const std::string& name : names_in(folder)) {
    if (name == kConfigJson || name == kSafetensorsIndex || std::ranges::find(weights, name) != weights.end()) continue;
    const fs::path path = folder / name;
    if (!is_carried(name) || !fs::is_regular_file(path, error) || fs::file_size(path, error) > kLargestCarried) {
      source.left_files.push_back(name);
      continue;
    }
    proto::CarriedFile& file = *source.origin.add_files();
    file.set_name(name);
    file.set_content(read_file(path, kLargestCarried));
  }
}

ModelSource open_huggingface(const fs::path& folder) {
  ModelSource source;
  source.form = ModelForm::kHuggingFace;
  source.path = folder;
  const fs::path config = folder / kConfigJson;
  source.origin.set_config(read_file(config, kLargestConfig));
  HuggingFaceModel parsed = parse_huggingface_config(source.origin.config(), config.string());
  source.model = std::move(parsed.model);
  source.passes = parsed.passes;
  source.family = std::move(parsed.family);
  source.output_bias = parsed.output_bias;
  source.kept_fields = std::move(parsed.kept_fields);
  source.unheeded = std::move(parsed.unheeded);
  source.tensors = open_safetensors(folder);
  std::ranges::copy(source.tensors->unheeded(), std::back_inserter(source.unheeded));
  collect_files(folder, source);
  return source;
}

ModelSource open_own(const fs::path& folder) {
  ModelSource source;
  source.form = ModelForm::kCheckpoint;
  source.path = folder;
  proto::Manifest manifest = CheckpointReader(folder).manifest();
  manifest.clear_files();
  manifest.clear_tensors();
  if (manifest.model().layers() == 0) reject_input("{} holds tensors and no model", folder.string());
  source.model = ModelConfig::from_proto(manifest.model());
  source.passes = passes_of(manifest.passes());
  source.origin = manifest.huggingface();
  if (!source.origin.config().empty()) {
    const HuggingFaceModel parsed =
        parse_huggingface_config(source.origin.config(), folder.string() + ": the config.json that it came with");
    source.family = parsed.family;
    source.kept_fields = parsed.kept_fields;
  }
  source.tensors = open_checkpoint(folder);
  source.manifest = std::move(manifest);
  return source;
}

}  // namespace

std::optional<fs::path> checkpoint_at(const fs::path& path) {
  std::error_code error;
  if (fs::exists(path / kManifestName, error)) return path;
  if (list_checkpoints(path).empty()) return std::nullopt;
  std::optional<CheckpointPlace> place = best_checkpoint(path);
  if (!place) place = latest_checkpoint(path).place;
  if (!place) reject_input("'{}' holds no whole checkpoint", path.string());
  return place->folder;
}

fs::path checkpoint_named(const std::string& path, const std::string& option) {
  const std::string named = fmt::format("{}{}'{}'", option, option.empty() ? "" : ": ", path);
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (!fs::exists(status)) reject_input("{} is no checkpoint: there is nothing of that name", named);
  if (!fs::is_directory(status)) {
    reject_input("{} is a file; right is a checkpoint, which is a folder, or an output directory that holds some",
                 named);
  }
  if (const auto checkpoint = checkpoint_at(path)) return *checkpoint;
  if (fs::exists(fs::path(path) / kConfigJson, error)) {
    reject_input("{} is a model of Hugging Face; make a checkpoint of it first: kvloom convert {} TARGET", named, path);
  }
  reject_input("{} is no checkpoint: it has neither {} nor folders such as {}", named, kManifestName,
               checkpoint_name(100));
}

ModelSource open_model_source(const fs::path& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (!fs::exists(status)) reject_input("'{}' does not exist", path.string());
  if (!fs::is_directory(status)) reject_input("'{}' is no folder; a model is one", path.string());
  if (const auto checkpoint = checkpoint_at(path)) return open_own(*checkpoint);
  if (fs::exists(path / kConfigJson, error)) return open_huggingface(path);
  if (const std::string other = describe_other_weights(path); !other.empty()) {
    reject_input("'{}' is no model: it has no {}, and {}", path.string(), kConfigJson, other);
  }
  reject_input("'{}' is no model: it has neither {} nor {} nor folders such as {}", path.string(), kManifestName,
               kConfigJson, checkpoint_name(100));
}

}  // namespace kvloom
