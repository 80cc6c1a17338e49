// The plans kvloom makes itself: from any model it reads to any it writes, with its KV map changed or not.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/convert/model_source.h"
#include "core/convert/tensor_target.h"
#include "proto/conversion.pb.h"

namespace kvloom {

// What a KV layer starts from when the map changes: K and V projections, their biases, the norm of K.
enum class KvInit : std::uint8_t {
  kCopy,     // its own
  kAverage,  // the mean over its readers' (MLKV, arXiv 2406.09297, section 3)
};

struct TargetModel {
  ModelForm form;
  ModelConfig model;
  Passes passes;
  std::string family;          // of Hugging Face
  std::optional<DType> dtype;  // nothing: each tensor keeps its own
  KvInit kv_init = KvInit::kCopy;
};

// The model with another map, in any written form. Readers keep their windows (a window belongs to the reader), unless
// `window` says another W, or 0 for none. Throws InputError as KvMap::parse does.
ModelConfig with_map(const ModelConfig& model, const std::string& map, std::optional<std::uint32_t> window);

// Every tensor of the target from those of the source; what stays over by design is named with the reason. Where the
// source itself shares, "its own" weights of a layer without any are those of the layer that it reads. Optimizer state
// goes from checkpoint to checkpoint while the map stays.
proto::ConversionPlan plan_conversion(const ModelSource& source, const TargetModel& target);

// Whether layers read the same of the same layers in both, whatever their windows.
bool same_sources(const KvMap& one, const KvMap& other);

// Throws InputError, naming the tensor, unless `tensors` are exactly those of the target's model, with its shapes, and
// of a dtype that its form stores. A checkpoint may have optimizer state besides.
void check_model_tensors(std::span<const PlannedTensor> tensors, const TargetModel& target);

// The small files of a Hugging Face folder: config.json, and what the model brought along. `dtype` is that of most
// weights.
std::vector<NamedFile> huggingface_files(const ModelSource& source, const TargetModel& target, DType dtype);

// The manifest of a checkpoint, without files and tensors.
proto::Manifest checkpoint_manifest(const ModelSource& source, const TargetModel& target);

// The dtype of the embedding: the one that a config.json names.
DType main_dtype(const PlannedConversion& conversion);

}  // namespace kvloom
