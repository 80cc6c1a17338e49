#include "core/convert/plan_models.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <map>
#include <set>
#include <utility>

#include "core/convert/huggingface_origin.h"
#include "core/parameters.h"
#include "core/tokenizer_files.h"
#include "core/version.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

using Target = proto::TargetTensor;

constexpr std::string_view kOptimizer = "optimizer/";
constexpr std::string_view kLayers = "model.layers.";
constexpr std::string_view kOutputBias = ".self_attn.o_proj.bias";

// "model.layers.3.self_attn.k_proj.weight" as 3 and the rest.
struct LayerTensor {
  int layer;
  std::string rest;  // ".self_attn.k_proj.weight"
};

std::optional<LayerTensor> layer_tensor(std::string_view name) {
  if (!name.starts_with(kLayers)) return std::nullopt;
  name.remove_prefix(kLayers.size());
  int layer = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), layer);
  if (error != std::errc()) return std::nullopt;
  return LayerTensor{layer, std::string(end, name.data() + name.size())};
}

// Of a tensor that only layers have whose K, or V, somebody reads: which of the two.
std::optional<KvPart> kv_part_of(const std::string& rest) {
  if (rest.starts_with(".self_attn.k_proj.") || rest.starts_with(".self_attn.k_norm.")) return KvPart::kKey;
  if (rest.starts_with(".self_attn.v_proj.")) return KvPart::kValue;
  return std::nullopt;
}

class Planner {
 public:
  Planner(const ModelSource& source, const TargetModel& target)
      : source_(source), target_(target), same_(same_sources(source.model.kv_map, target.model.kv_map)) {}

  proto::ConversionPlan plan() {
    plan_.set_format(kPlanFormat);
    *plan_.mutable_model() = target_.model.to_proto();
    plan_.mutable_passes()->set_without_gradient(static_cast<std::uint32_t>(target_.passes.without_gradient));
    plan_.mutable_passes()->set_with_gradient(static_cast<std::uint32_t>(target_.passes.with_gradient));
    const ParameterLayout layout(target_.model, ModelShard::whole(target_.model));
    for (const Parameter& parameter : layout.all()) add_parameter(parameter);
    if (target_.form == ModelForm::kHuggingFace && has_output_bias(target_.family, target_.model)) add_output_biases();
    if (keeps_optimizer()) add_optimizer();
    in_order_of_source();
    list_left_over();
    return std::move(plan_);
  }

 private:
  bool keeps_optimizer() const {
    return same_ && source_.model.vocab == target_.model.vocab && source_.form == ModelForm::kCheckpoint &&
           target_.form == ModelForm::kCheckpoint;
  }

  // As the source has it: models saved without their head lack the prefix.
  std::string source_name(const std::string& name) const {
    constexpr std::string_view kPrefix = "model.";
    if (source_.tensors->find(name) == nullptr && name.starts_with(kPrefix)) {
      std::string bare = name.substr(kPrefix.size());
      if (source_.tensors->find(bare) != nullptr) return bare;
    }
    return name;
  }

  Target& add(const std::string& name, const Shape& shape) {
    Target& tensor = *plan_.add_tensors();
    tensor.set_name(name);
    tensor.mutable_shape()->Assign(shape.begin(), shape.end());
    if (target_.dtype) tensor.set_dtype(std::string(name_of(*target_.dtype)));
    return tensor;
  }

  void add_input(Target& tensor, const std::string& name) {
    tensor.add_inputs()->set_tensor(source_name(name));
    claimed_.insert(source_name(name));
  }

  void add_parameter(const Parameter& parameter) {
    Target& tensor = add(parameter.name, parameter.global_shape);
    if (target_.model.vocab > source_.model.vocab && parameter.global_shape[0] == target_.model.vocab &&
        (parameter.name == "model.embed_tokens.weight" || parameter.name == "lm_head.weight")) {
      tensor.set_operation(Target::PAD);
    }
    const auto place = layer_tensor(parameter.name);
    const std::optional<KvPart> part = place ? kv_part_of(place->rest) : std::nullopt;
    if (!part) return add_input(tensor, parameter.name);
    const std::vector<int> layers = sources_of(*part, place->layer);
    if (layers.size() > 1) tensor.set_operation(Target::AVERAGE);
    for (const int layer : layers) add_input(tensor, fmt::format("{}{}{}", kLayers, layer, place->rest));
  }

  // The layers of the source model from which a KV layer of the target gets its K, or V.
  std::vector<int> sources_of(KvPart part, int kv_layer) const {
    const KvMap& before = source_.model.kv_map;
    // A KV layer may itself read another: its own weights are then still its own.
    const int own = before.owns(part, kv_layer) ? kv_layer : before.source(part, kv_layer);
    if (same_ || target_.kv_init == KvInit::kCopy) return {own};
    std::vector<int> layers;
    for (const int reader : target_.model.kv_map.readers(part, kv_layer)) {
      layers.push_back(before.source(part, reader));
    }
    // A mean of one thing is that thing.
    if (std::ranges::adjacent_find(layers, std::not_equal_to<>()) == layers.end()) layers.resize(1);
    return layers;
  }

  void add_output_biases() {
    const SourceTensor* output = source_.tensors->find(source_name("model.layers.0.self_attn.o_proj.weight"));
    for (int layer = 0; layer < target_.model.layers; ++layer) {
      Target& tensor = add(fmt::format("{}{}{}", kLayers, layer, kOutputBias), {target_.model.hidden});
      tensor.set_operation(Target::ZERO);
      const DType dtype = output != nullptr && output->dtype ? *output->dtype : DType::kF32;
      if (tensor.dtype().empty()) tensor.set_dtype(std::string(name_of(dtype)));
    }
  }

  void add_optimizer() {
    for (const SourceTensor& tensor : source_.tensors->tensors()) {
      if (!tensor.name.starts_with(kOptimizer)) continue;
      Target& copy = add(tensor.name, tensor.shape);
      copy.clear_dtype();
      add_input(copy, tensor.name);
    }
  }

  // What reads the source front to back.
  void in_order_of_source() {
    const auto position = [&](const Target& tensor) {
      const bool known = tensor.inputs_size() > 0 && source_.tensors->find(tensor.inputs(0).tensor()) != nullptr;
      return known ? source_.tensors->position(tensor.inputs(0).tensor()) : source_.tensors->tensors().size();
    };
    std::vector<std::pair<std::size_t, Target>> sorted;
    for (Target& tensor : *plan_.mutable_tensors()) sorted.emplace_back(position(tensor), std::move(tensor));
    std::ranges::stable_sort(sorted, {}, &std::pair<std::size_t, Target>::first);
    plan_.clear_tensors();
    for (auto& [place, tensor] : sorted) *plan_.add_tensors() = std::move(tensor);
  }

  void list_left_over() {
    for (const SourceTensor& tensor : source_.tensors->tensors()) {
      if (claimed_.contains(tensor.name)) continue;
      const std::string reason = why_left_over(tensor.name);
      if (reason.empty()) continue;  // the conversion will be refused, naming it
      proto::LeftOverTensor& left = *plan_.add_left_over();
      left.set_name(tensor.name);
      left.set_reason(reason);
      if (tensor.name.ends_with(kOutputBias)) left.set_condition(proto::LeftOverTensor::ZEROS);
    }
  }

  std::string why_left_over(const std::string& name) const {
    if (name == "lm_head.weight" && target_.model.tied_embeddings) return "the embedding is the head";
    if (name.find("rotary_emb.inv_freq") != name.npos) return "it follows from the config";
    if (name.ends_with(kOutputBias)) return "kvloom has no bias there";
    if (name.starts_with(kOptimizer)) {
      return same_ && source_.model.vocab == target_.model.vocab ? "optimizer state"
                                                                 : "optimizer state of another model";
    }
    auto place = layer_tensor(name);
    if (!place) place = layer_tensor("model." + name);
    const std::optional<KvPart> part = place ? kv_part_of(place->rest) : std::nullopt;
    if (!part || place->layer < 0 || place->layer >= target_.model.layers) return "";
    const KvMap& map = target_.model.kv_map;
    if (map.owns(*part, place->layer) && !source_.model.kv_map.owns(*part, place->layer)) return "";
    return fmt::format("layer {} reads {}layer {}", place->layer,
                       map.reads_apart(place->layer) ? fmt::format("{} of ", name_of(*part)) : "",
                       map.source(*part, place->layer));
  }

  const ModelSource& source_;
  const TargetModel& target_;
  bool same_;
  proto::ConversionPlan plan_;
  std::set<std::string> claimed_;
};

// The tokenizer that a folder brought, as the manifest has it; its files leave the carried ones, so that they are there
// once.
void take_tokenizer(proto::Manifest& manifest) {
  auto& carried = *manifest.mutable_huggingface()->mutable_files();
  std::vector<NamedFile> files;
  for (const proto::CarriedFile& file : carried) files.push_back({file.name(), file.content()});
  const std::optional<CarriedTokenizer> tokenizer = tokenizer_among(files);
  if (!tokenizer) return;
  manifest.set_tokenizer_kind(tokenizer->kind);
  manifest.set_tokenizer(tokenizer->content);
  std::vector<NamedFile> taken = files_of(*tokenizer, "tokenizer");
  // Written anew when it leaves.
  if (tokenizer->kind != "huggingface")
    taken.insert(taken.end(), {{std::string(kTokenizerJson), {}}, {std::string(kTokenizerConfig), {}}});
  for (const NamedFile& file : taken) {
    const auto place = std::ranges::find(carried, file.name, &proto::CarriedFile::name);
    if (place != carried.end()) carried.erase(place);
  }
}

}  // namespace

ModelConfig with_map(const ModelConfig& model, const std::string& map, std::optional<std::uint32_t> window) {
  const std::int64_t w = window ? static_cast<std::int64_t>(*window) : model.window;
  const KvMap parsed = KvMap::parse(map, static_cast<int>(model.layers), w, model.kv_map.diagonal());
  std::vector<std::int64_t> windows;
  for (int layer = 0; layer < parsed.layers(); ++layer) {
    const bool windowed = parsed.window(layer) > 0 || model.kv_map.window(layer) > 0;
    windows.push_back(windowed ? w : 0);
  }
  ModelConfig changed = model;
  changed.kv_map = parsed.with_windows(windows);
  changed.window = w;
  return changed;
}

bool same_sources(const KvMap& one, const KvMap& other) {
  if (one.layers() != other.layers() || one.diagonal() != other.diagonal()) return false;
  for (int layer = 0; layer < one.layers(); ++layer) {
    for (const KvPart part : kKvParts) {
      if (one.source(part, layer) != other.source(part, layer)) return false;
    }
  }
  return true;
}

proto::ConversionPlan plan_conversion(const ModelSource& source, const TargetModel& target) {
  return Planner(source, target).plan();
}

void check_model_tensors(std::span<const PlannedTensor> tensors, const TargetModel& target) {
  std::map<std::string, Shape> wanted;
  const ParameterLayout layout(target.model, ModelShard::whole(target.model));
  for (const Parameter& parameter : layout.all()) wanted[parameter.name] = parameter.global_shape;
  if (target.form == ModelForm::kHuggingFace && has_output_bias(target.family, target.model)) {
    for (int layer = 0; layer < target.model.layers; ++layer) {
      wanted[fmt::format("{}{}{}", kLayers, layer, kOutputBias)] = {target.model.hidden};
    }
  }
  for (const PlannedTensor& tensor : tensors) {
    if (target.form == ModelForm::kCheckpoint && tensor.name.starts_with(kOptimizer)) continue;
    const auto found = wanted.find(tensor.name);
    if (found == wanted.end()) reject_input("plan: the target's model has no tensor {}", tensor.name);
    if (found->second != tensor.shape) {
      reject_input("plan: tensor {} is {}; the target's model has {}", tensor.name, to_string(tensor.shape),
                   to_string(found->second));
    }
    if (!is_castable(tensor.dtype, DType::kF32)) {
      reject_input("plan: tensor {} would be {}; right are f32, bf16 and f16", tensor.name, name_of(tensor.dtype));
    }
    wanted.erase(found);
  }
  if (!wanted.empty()) {
    reject_input("plan: {} tensors of the target's model are not made: {}, ...", wanted.size(), wanted.begin()->first);
  }
}

std::vector<NamedFile> huggingface_files(const ModelSource& source, const TargetModel& target, DType dtype) {
  std::vector<NamedFile> files;
  files.push_back({std::string(kConfigJson),
                   huggingface_config(target.family, target.model, target.passes, dtype, source.origin.config())});
  for (const proto::CarriedFile& file : source.origin.files()) files.push_back({file.name(), file.content()});
  if (!source.manifest) return files;
  const CarriedTokenizer tokenizer{source.manifest->tokenizer_kind(), source.manifest->tokenizer()};
  for (const NamedFile& own : files_of(tokenizer, source.path.string())) {
    std::erase_if(files, [&](const NamedFile& file) { return file.name == own.name; });
    files.push_back(own);
  }
  return files;
}

proto::Manifest checkpoint_manifest(const ModelSource& source, const TargetModel& target) {
  proto::Manifest manifest;
  if (source.manifest) manifest = *source.manifest;
  *manifest.mutable_model() = target.model.to_proto();
  manifest.mutable_passes()->set_without_gradient(static_cast<std::uint32_t>(target.passes.without_gradient));
  manifest.mutable_passes()->set_with_gradient(static_cast<std::uint32_t>(target.passes.with_gradient));
  if (!same_sources(source.model.kv_map, target.model.kv_map) || source.model.vocab != target.model.vocab) {
    // Another model, at the start of its training.
    manifest.clear_training();
    manifest.clear_run();
  }
  if (source.form == ModelForm::kHuggingFace) {
    *manifest.mutable_huggingface() = source.origin;
    take_tokenizer(manifest);
  }
  manifest.set_created_by(program_and_version());
  return manifest;
}

DType main_dtype(const PlannedConversion& conversion) {
  const auto found = std::ranges::find(conversion.tensors(), "model.embed_tokens.weight", &PlannedTensor::name);
  return found == conversion.tensors().end() ? DType::kF32 : found->dtype;
}

}  // namespace kvloom
