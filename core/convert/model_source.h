// A model to convert, whatever it is stored as: its config, its tensors, and the small files that belong to it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/convert/huggingface_config.h"
#include "core/convert/tensor_source.h"
#include "proto/manifest.pb.h"

namespace kvloom {

enum class ModelForm : std::uint8_t { kHuggingFace, kCheckpoint };

struct ModelSource {
  ModelForm form;
  std::filesystem::path path;  // of the folder; of an output directory, the checkpoint that was taken
  ModelConfig model;
  Passes passes;
  std::string family;        // of Hugging Face; empty for a model that never was there
  bool output_bias = false;  // HuggingFaceModel's
  std::unique_ptr<TensorSource> tensors;
  proto::HuggingFaceOrigin origin;          // config and small files, to take along
  std::optional<proto::Manifest> manifest;  // of a checkpoint, without tensors and files
  std::vector<std::string> kept_fields;     // HuggingFaceModel's
  std::vector<std::string> left_files;      // of the folder, that are not taken along
  std::vector<std::string> unheeded;        // HuggingFaceModel's, and of its files, in words for warnings
};

// A Hugging Face folder, a checkpoint, or an output directory, of which the best or else the newest whole checkpoint is
// taken. Throws InputError for anything else and for what is damaged.
ModelSource open_model_source(const std::filesystem::path& path);

// The checkpoint that `path` is or of which, as an output directory, it has the best or else the newest whole one;
// nothing if it is neither.
std::optional<std::filesystem::path> checkpoint_at(const std::filesystem::path& path);

// The same where it must be one. Throws InputError, beginning with the option that named it if that is given, which
// says what else `path` is and how it becomes a checkpoint.
std::filesystem::path checkpoint_named(const std::string& path, const std::string& option = {});

}  // namespace kvloom
