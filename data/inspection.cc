#include "data/inspection.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>

#include "core/checkpoint_folder.h"
#include "core/checkpoint_manifest.h"
#include "core/checkpoint_reader.h"
#include "core/convert/huggingface_origin.h"
#include "core/convert/plan.h"
#include "core/convert/plan_models.h"
#include "core/file.h"
#include "core/kv_kept.h"
#include "core/safetensors.h"
#include "data/token_file.h"
#include "data/token_file_format.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr std::string_view kHdf5Signature = "\x89HDF\r\n\x1a\n";
constexpr std::string_view kOptimizerPrefix = "optimizer/";

Json json_of(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  std::string text;
  const auto status = google::protobuf::util::MessageToJsonString(message, &text, options);
  if (!status.ok()) fail("inspect: {} cannot be written as JSON: {}", message.GetTypeName(), status.ToString());
  return Json::parse(text);
}

// The map, and what a text leaves of K and V: of its first token, and when it fills the context.
void describe_map(const proto::ModelConfig& model, Json& description) {
  const std::string& written = model.kv_map().empty() ? "none" : model.kv_map();
  const ModelConfig config = ModelConfig::from_proto(model);
  description["kv_map"] = {{"written", written},
                           {"explicit", config.kv_map.explicit_form()},
                           {"kv_layers", config.kv_map.kv_layers().size()},
                           {"kept", fmt::format("{}", fmt::join(reach_lines(config.kv_map), "; "))}};
  Json& of_token = description["kv_bytes_per_token"];
  Json& of_context = description["kv_bytes_at_context"] = {{"positions", config.context}};
  for (const KvFormat format : {KvFormat::kF32, KvFormat::kBF16, KvFormat::kInt8}) {
    of_token[std::string(name_of(format))] = kv_bytes(config, format, 1);
    of_context[std::string(name_of(format))] = kv_bytes(config, format, config.context);
  }
}

Json describe_tensor(const proto::TensorEntry& tensor) {
  const Shape shape = shape_of(tensor.shape());
  return {{"name", tensor.name()},
          {"dtype", tensor.dtype()},
          {"shape", shape},
          {"bytes", element_count(shape) * static_cast<std::int64_t>(size_of(dtype_named(tensor.dtype())))},
          {"slices", tensor.slices_size()}};
}

std::int64_t count_elements(const proto::Manifest& manifest, bool of_optimizer) {
  std::int64_t count = 0;
  for (const proto::TensorEntry& tensor : manifest.tensors()) {
    if (tensor.name().starts_with(kOptimizerPrefix) == of_optimizer) count += element_count(shape_of(tensor.shape()));
  }
  return count;
}

std::uint64_t count_bytes(const proto::Manifest& manifest) {
  std::uint64_t bytes = 0;
  for (const proto::ShardFile& file : manifest.files()) bytes += file.bytes();
  return bytes;
}

Json describe_training(const proto::TrainingState& training) {
  return {{"step", training.step()},
          {"sequences", training.sequences()},
          {"seed", training.seed()},
          {"best_validation_loss", training.best_validation_loss()},
          {"data_identity", training.data_identity()}};
}

int verifying_threads() { return static_cast<int>(std::max(1u, std::thread::hardware_concurrency())); }

Json describe_checkpoint(const fs::path& folder, const Inspection& how) {
  const CheckpointReader reader(folder);
  if (how.depth == InspectDepth::kChecksums) verify_checkpoint(folder, verifying_threads(), how.progress);
  const proto::Manifest& manifest = reader.manifest();
  Json description = {{"kind", "checkpoint"},
                      {"path", reader.folder().string()},
                      {"created_by", manifest.created_by()},
                      {"checksums", how.depth == InspectDepth::kChecksums ? "right" : "not checked"},
                      {"training", describe_training(manifest.training())}};
  if (manifest.model().layers() > 0) describe_map(manifest.model(), description);
  description["model"] = json_of(manifest.model());
  description["passes"] = json_of(manifest.passes());
  description["mesh"] = json_of(manifest.mesh());
  description["run"] = json_of(manifest.run());
  description["tokenizer"] = manifest.tokenizer_kind();
  description["parameters"] = count_elements(manifest, false);
  description["optimizer_values"] = count_elements(manifest, true);
  description["bytes"] = count_bytes(manifest);
  description["tensors"] = Json::array();
  for (const proto::TensorEntry& tensor : manifest.tensors()) description["tensors"].push_back(describe_tensor(tensor));
  description["files"] = Json::array();
  for (const proto::ShardFile& file : manifest.files()) {
    description["files"].push_back({{"name", file.name()}, {"bytes", file.bytes()}});
  }
  return description;
}

Json describe_place(const CheckpointPlace& place, const Inspection& how) {
  Json description = {{"name", place.folder.filename().string()}, {"step", place.step}};
  try {
    const CheckpointReader reader(place.folder);
    if (how.depth == InspectDepth::kChecksums) verify_checkpoint(place.folder, verifying_threads(), how.progress);
    description["whole"] = true;
    description["bytes"] = count_bytes(reader.manifest());
    description["parameters"] = count_elements(reader.manifest(), false);
    description["checksums"] = how.depth == InspectDepth::kChecksums ? "right" : "not checked";
  } catch (const InputError& error) {
    description["whole"] = false;
    description["reason"] = error.what();
  }
  return description;
}

Json describe_output(const fs::path& directory, const Inspection& how) {
  Json description = {{"kind", "output"}, {"path", directory.string()}, {"best", nullptr}, {"latest", nullptr}};
  if (const auto best = best_checkpoint(directory)) description["best"] = best->folder.filename().string();
  description["checkpoints"] = Json::array();
  for (const CheckpointPlace& place : list_checkpoints(directory)) {
    Json checkpoint = describe_place(place, how);
    if (checkpoint["whole"]) description["latest"] = checkpoint["name"];
    description["checkpoints"].push_back(std::move(checkpoint));
  }
  return description;
}

void add_tensors(const SafetensorsFile& file, Json& description) {
  for (const SafetensorsEntry& entry : file.tensors()) {
    description["bytes"] = description.value("bytes", std::uint64_t{0}) + entry.bytes;
    description["parameters"] = description.value("parameters", std::int64_t{0}) + element_count(entry.shape);
    description["tensors"].push_back(
        {{"name", entry.name}, {"dtype", entry.stored_dtype}, {"shape", entry.shape}, {"bytes", entry.bytes}});
  }
}

SafetensorsFile open_safetensors_file(const fs::path& path) {
  if (path.extension() == ".safetensors") return SafetensorsFile(path);
  try {
    return SafetensorsFile(path);
  } catch (const InputError&) {
    reject_input(
        "{} is no token file and no safetensors file; right is also a folder: a checkpoint, an output directory "
        "or a model of Hugging Face",
        path.string());
  }
}

Json describe_safetensors(const fs::path& path) {
  const SafetensorsFile file = open_safetensors_file(path);
  Json description = {{"kind", "safetensors"}, {"path", path.string()}, {"metadata", file.metadata()}};
  description["parameters"] = 0;
  description["bytes"] = 0;
  description["tensors"] = Json::array();
  add_tensors(file, description);
  return description;
}

// Opening it checks every file's header against its size and the index; checksums, every shape against the config.
Json describe_huggingface(const fs::path& folder, const Inspection& how) {
  const ModelSource source = open_model_source(folder);
  if (how.depth == InspectDepth::kChecksums) {
    const TargetModel same{
        .form = ModelForm::kCheckpoint, .model = source.model, .passes = source.passes, .family = {}, .dtype = {}};
    PlannedConversion conversion(plan_conversion(source, same), *source.tensors);
    check_model_tensors(conversion.tensors(), same);
    conversion.check_left_over();
  }
  Json description = {{"kind", "huggingface"}, {"path", folder.string()}, {"family", source.family}};
  description["shapes"] = how.depth == InspectDepth::kChecksums ? "as the config has them" : "not checked";
  describe_map(source.model.to_proto(), description);
  description["model"] = json_of(source.model.to_proto());
  description["parameters"] = 0;
  description["bytes"] = 0;
  description["tensors"] = Json::array();
  description["files"] = Json::array();
  for (const std::string& name : safetensors_files(folder)) {
    add_tensors(SafetensorsFile(folder / name), description);
    description["files"].push_back({{"name", name}, {"bytes", fs::file_size(folder / name)}});
  }
  return description;
}

// A token file begins with its own header; HDF5's follows.
std::string first_bytes(const fs::path& path) {
  std::string first(kHdf5Signature.size(), '\0');
  std::ifstream(path, std::ios::binary).read(first.data(), static_cast<std::streamsize>(first.size()));
  return first;
}

// A text that a plan of kvloom convert is; an empty one would be of any kind.
bool is_conversion_plan(const fs::path& path) {
  try {
    const std::string text = read_file(path, kLargestPlan);
    return parse_plan(text, path.string()).tensors_size() > 0;
  } catch (const InputError&) {
    return false;
  }
}

// Files that kvloom writes or reads and does not describe, each with what is right instead.
void refuse_other_files(const fs::path& path, std::string_view first) {
  std::error_code error;
  const std::string name = path.string();
  if (path.extension() != ".safetensors" && fs::exists(parent_of(path) / kManifestName, error)) {
    reject_input("{} is a part of a checkpoint; inspect its folder, {}", name, parent_of(path).string());
  }
  if (path.extension() == ".pbtxt" && is_conversion_plan(path)) {
    reject_input(
        "{} is a plan of kvloom convert and describes itself; kvloom convert SOURCE --plan {} --dry-run shows what it "
        "makes of a model",
        name, name);
  }
  if (path.extension() == ".pbtxt") {
    reject_input(
        "{} is a config and describes itself; kvloom train --config {} --print-config fills in what it leaves "
        "out",
        name, name);
  }
  if (first == kHdf5Signature) {
    reject_input(
        "{} is HDF5 and no token file; what kvloom eval dumps (logits, gradients) is shown by HDF5's own h5dump", name);
  }
}

// One flat object a line for each input; a line that is none is shown as it is.
Json sources_of(const TokenFile& file) {
  Json sources = Json::array();
  const auto flat = [](int depth, Json::parse_event_t event, Json&) {
    return depth == 0 || (event != Json::parse_event_t::object_start && event != Json::parse_event_t::array_start);
  };
  std::istringstream lines(file.provenance());
  for (std::string line; std::getline(lines, line);) {
    const Json source = Json::parse(line, flat, false);
    sources.push_back(source.is_object() ? source : Json{{"source", line}});
  }
  return sources;
}

Json describe_token_file(const fs::path& path, const Inspection& how) {
  const TokenFile file(path);
  if (how.depth == InspectDepth::kChecksums) {
    file.verify_all(verifying_threads(), how.progress);
  }
  return {{"kind", "tokens"},
          {"path", path.string()},
          {"checksums", how.depth == InspectDepth::kChecksums ? "right" : "not checked"},
          {"training_tokens", file.count(Part::kTraining)},
          {"training_documents", file.documents(Part::kTraining)},
          {"training_text_bytes", file.text_bytes(Part::kTraining)},
          {"validation_tokens", file.count(Part::kValidation)},
          {"validation_documents", file.documents(Part::kValidation)},
          {"validation_text_bytes", file.text_bytes(Part::kValidation)},
          {"vocab", file.vocab()},
          {"tokenizer", file.tokenizer_kind()},
          {"identity", file.identity()},
          {"created_by", file.header().created_by()},
          {"sources", sources_of(file)}};
}

}  // namespace

Json describe(const fs::path& path, const Inspection& how) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (!fs::exists(status)) reject_input("{} does not exist", path.string());
  if (fs::is_directory(status)) {
    if (fs::exists(path / kManifestName, error)) return describe_checkpoint(path, how);
    if (!list_checkpoints(path).empty()) return describe_output(path, how);
    if (fs::exists(path / kConfigJson, error)) return describe_huggingface(path, how);
    reject_input(
        "{} is no checkpoint (it has no {}), no output directory (no folder such as {}) and no model of "
        "Hugging Face (no config.json)",
        path.string(), kManifestName, checkpoint_name(100));
  }
  const std::string first = first_bytes(path);
  if (first == kTokenFileMagic) return describe_token_file(path, how);
  refuse_other_files(path, first);
  return describe_safetensors(path);
}

}  // namespace kvloom
