// A model and its optimizer to and from a checkpoint (core/checkpoint_writer.h). Weights stand under their Hugging Face
// names, moments under "optimizer/momentum/" and "optimizer/variance/" with the same.
#pragma once

#include <filesystem>

#include "core/checkpoint_reader.h"
#include "core/model.h"
#include "proto/manifest.pb.h"
#include "train/optimizer.h"

namespace kvloom {

// Throws Error when it cannot be written; the folder is whole or as it was.
void write_training_checkpoint(const std::filesystem::path& folder, Model& model, AdamWOptimizer& optimizer,
                               proto::Manifest manifest);

// Throws InputError naming the first field in which the checkpoint's model differs.
void check_same_model(const CheckpointReader& reader, const proto::ModelConfig& wanted);

// The model's weights = the checkpoint's, refreshed.
void read_weights(CheckpointReader& reader, Model& model);

// Moments and step count = the checkpoint's.
void read_moments(CheckpointReader& reader, const Model& model, AdamWOptimizer& optimizer);

}  // namespace kvloom
