#include "launch/inspect.h"

#include <fmt/format.h>
#include <fmt/ostream.h>
#include <fmt/ranges.h>
#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <vector>

#include "core/checkpoint_folder.h"
#include "core/checkpoint_manifest.h"
#include "core/checkpoint_reader.h"
#include "core/checkpoint_verify.h"
#include "core/convert/huggingface_origin.h"
#include "core/convert/plan.h"
#include "core/convert/plan_models.h"
#include "core/file.h"
#include "core/kv_kept.h"
#include "core/quantity_text.h"
#include "core/safetensors.h"
#include "data/token_file_format.h"
#include "kernels/error.h"
#include "launch/terminal.h"

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

void verify(const fs::path& folder) {
  with_verify_progress([&](int threads, const auto& progress) { verify_checkpoint(folder, threads, progress); });
}

Json describe_checkpoint(const fs::path& folder, InspectDepth depth) {
  const CheckpointReader reader(folder);
  if (depth == InspectDepth::kChecksums) verify(folder);
  const proto::Manifest& manifest = reader.manifest();
  Json description = {{"kind", "checkpoint"},
                      {"path", reader.folder().string()},
                      {"created_by", manifest.created_by()},
                      {"checksums", depth == InspectDepth::kChecksums ? "right" : "not checked"},
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

Json describe_place(const CheckpointPlace& place, InspectDepth depth) {
  Json description = {{"name", place.folder.filename().string()}, {"step", place.step}};
  try {
    const CheckpointReader reader(place.folder);
    if (depth == InspectDepth::kChecksums) verify(place.folder);
    description["whole"] = true;
    description["bytes"] = count_bytes(reader.manifest());
    description["parameters"] = count_elements(reader.manifest(), false);
    description["checksums"] = depth == InspectDepth::kChecksums ? "right" : "not checked";
  } catch (const InputError& error) {
    description["whole"] = false;
    description["reason"] = error.what();
  }
  return description;
}

Json describe_output(const fs::path& directory, InspectDepth depth) {
  Json description = {{"kind", "output"}, {"path", directory.string()}, {"best", nullptr}, {"latest", nullptr}};
  if (const auto best = best_checkpoint(directory)) description["best"] = best->folder.filename().string();
  description["checkpoints"] = Json::array();
  for (const CheckpointPlace& place : list_checkpoints(directory)) {
    Json checkpoint = describe_place(place, depth);
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

// Opening it checks every file's header against its size and the index; `depth`, every shape against the config.
Json describe_huggingface(const fs::path& folder, InspectDepth depth) {
  const ModelSource source = open_model_source(folder);
  if (depth == InspectDepth::kChecksums) {
    const TargetModel same{
        .form = ModelForm::kCheckpoint, .model = source.model, .passes = source.passes, .family = {}, .dtype = {}};
    PlannedConversion conversion(plan_conversion(source, same), *source.tensors);
    check_model_tensors(conversion.tensors(), same);
    conversion.check_left_over();
  }
  Json description = {{"kind", "huggingface"}, {"path", folder.string()}, {"family", source.family}};
  description["shapes"] = depth == InspectDepth::kChecksums ? "as the config has them" : "not checked";
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

Json describe_tokens(const InspectRequest& request) {
  if (!request.describe_token_file) reject_input("{} is a token file", request.path.string());
  Json description = {{"kind", "tokens"}, {"path", request.path.string()}};
  description.update(request.describe_token_file(request.path, request.depth));
  return description;
}

// After all of an output directory was shown: what of it is damaged.
void refuse_damaged(const Json& description) {
  const auto checkpoints = description.find("checkpoints");
  if (checkpoints == description.end()) return;
  const auto is_whole = [](const Json& checkpoint) { return checkpoint["whole"].get<bool>(); };
  const auto damaged = std::ranges::find_if_not(*checkpoints, is_whole);
  if (damaged == checkpoints->end()) return;
  reject_input("{}: {} of {} checkpoints are damaged; the first: {}", description["path"].get<std::string>(),
               std::ranges::count_if(*checkpoints, std::not_fn(is_whole)), checkpoints->size(),
               (*damaged)["reason"].get<std::string>());
}

Json describe(const InspectRequest& request) {
  std::error_code error;
  const fs::file_status status = fs::status(request.path, error);
  if (!fs::exists(status)) reject_input("{} does not exist", request.path.string());
  if (fs::is_directory(status)) {
    if (fs::exists(request.path / kManifestName, error)) return describe_checkpoint(request.path, request.depth);
    if (!list_checkpoints(request.path).empty()) return describe_output(request.path, request.depth);
    if (fs::exists(request.path / kConfigJson, error)) return describe_huggingface(request.path, request.depth);
    reject_input(
        "{} is no checkpoint (it has no {}), no output directory (no folder such as {}) and no model of "
        "Hugging Face (no config.json)",
        request.path.string(), kManifestName, checkpoint_name(100));
  }
  const std::string first = first_bytes(request.path);
  if (first == kTokenFileMagic) return describe_tokens(request);
  refuse_other_files(request.path, first);
  return describe_safetensors(request.path);
}

// A number with its thousands apart: 7 340 032.
std::string grouped(std::uint64_t number) {
  std::string digits = std::to_string(number);
  for (std::size_t at = digits.size(); at > 3; at -= 3) digits.insert(at - 3, 1, ' ');
  return digits;
}

std::string as_text(const Json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_null()) return "none";
  if (value.is_number_unsigned() || (value.is_number_integer() && value.get<std::int64_t>() >= 0)) {
    return grouped(value.get<std::uint64_t>());
  }
  if (!value.is_object()) return value.dump();
  std::string fields;
  for (const auto& [name, field] : value.items()) {
    if (field == "") continue;
    fields += fmt::format("{}{} {}", fields.empty() ? "" : ", ", name, as_text(field));
  }
  return fields;
}

void print_line(std::ostream& out, std::string_view name, std::string_view text) {
  if (!text.empty()) fmt::print(out, "{:<21} {}\n", name, text);
}

// What a table shows of a field: units stand beside numbers, there being no heading.
std::string cell_text(const std::string& name, const Json& field) {
  if (name == "step") return {};  // the checkpoint's name says it
  if (name == "checksums") return field == "right" ? "checksums right" : "";
  if (field.is_boolean()) return fmt::format("{}{}", field.get<bool>() ? "" : "not ", name);
  if (field.is_number()) return fmt::format("{} {}", as_text(field), name);
  return as_text(field);
}

// A list of objects with like fields.
void print_table(std::ostream& out, std::string_view title, const Json& rows) {
  fmt::print(out, "\n{} ({})\n", title, rows.size());
  std::vector<std::vector<std::string>> cells;
  std::vector<std::size_t> widths;
  for (const Json& row : rows) {
    std::vector<std::string>& line = cells.emplace_back();
    for (const auto& [name, field] : row.items()) {
      std::string text = cell_text(name, field);
      line.push_back(std::move(text));
    }
    widths.resize(std::max(widths.size(), line.size()));
    // Nothing is aligned behind a row's last cell.
    for (std::size_t i = 0; i + 1 < line.size(); ++i) widths[i] = std::max(widths[i], line[i].size());
  }
  for (const auto& line : cells) {
    std::string text;
    for (std::size_t column = 0; column < line.size(); ++column) {
      if (!line[column].empty()) text += fmt::format("  {:<{}}", line[column], widths[column]);
    }
    fmt::print(out, "{}\n", text.substr(0, text.find_last_not_of(' ') + 1));
  }
}

// Plain fields as lines, then lists of objects as tables.
void print_text(std::ostream& out, const Json& description) {
  for (const auto& [name, value] : description.items()) {
    if (!value.is_array()) print_line(out, name, as_text(value));
  }
  for (const auto& [name, value] : description.items()) {
    if (value.is_array()) print_table(out, name, value);
  }
}

}  // namespace

void with_verify_progress(const std::function<void(int threads, const VerifyProgressCall& progress)>& work) {
  ProgressLine line;
  work(static_cast<int>(std::max(1u, std::thread::hardware_concurrency())), [&](const VerifyProgress& done) {
    line.update(fmt::format("{} of {} checked", format_bytes(static_cast<double>(done.bytes)),
                            format_bytes(static_cast<double>(done.of_bytes))));
  });
  line.end();
}

void inspect(const InspectRequest& request, std::ostream& out) {
  const Json description = describe(request);
  if (request.form == InspectForm::kJson) {
    out << description.dump(-1, ' ', false, Json::error_handler_t::replace) << "\n";
  } else {
    print_text(out, description);
  }
  if (request.depth == InspectDepth::kChecksums) {
    out.flush();
    refuse_damaged(description);
  }
}

}  // namespace kvloom
