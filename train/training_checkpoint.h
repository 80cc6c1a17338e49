// A model and its optimizer to and from a checkpoint (core/checkpoint_writer.h). Weights stand under their Hugging Face
// names, moments under "optimizer/momentum/" and "optimizer/variance/" with the same.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "core/checkpoint_reader.h"
#include "core/model.h"
#include "core/tokenizer_files.h"
#include "data/token_file.h"
#include "parallel/data_replicas.h"
#include "parallel/mesh_ranks.h"
#include "proto/manifest.pb.h"
#include "train/optimizer.h"

namespace kvloom {

// Writes the checkpoint `folder` from every rank of a mesh: each weight once, and each rank's moments (on data rank 0
// only, unless the update is shared). `manifest` counts on rank 0. Collective. Throws Error when it cannot be written;
// the folder is whole or as it was. Returns, on rank 0, where something that stood in its place is now, if it was more
// than a checkpoint.
std::optional<std::filesystem::path> write_training_checkpoint(const std::filesystem::path& folder, MeshRanks& ranks,
                                                               const Model& model, AdamWOptimizer& optimizer,
                                                               UpdateSharing sharing, proto::Manifest manifest);

// Throws InputError naming the first field in which the checkpoint's model differs.
void check_same_model(const CheckpointReader& reader, const proto::ModelConfig& wanted);

// The same for a run that starts from the checkpoint's weights: context and starting values may be others.
void check_same_weights(const CheckpointReader& reader, proto::ModelConfig wanted);

// The tokenizer that a manifest or a token file carries; of no kind if a manifest has none.
CarriedTokenizer tokenizer_of(const proto::Manifest& manifest);
CarriedTokenizer tokenizer_of(const TokenFile& file);

// Throws InputError unless the file's tokens mean the same to the model (core/tokenizer_files.h), or the model has no
// tokenizer. `model` and `path` are names for the message, `otherwise` how to go on all the same.
void check_tokenizer(const CarriedTokenizer& tokenizer, const std::string& model, const TokenFile& file,
                     const std::string& path, const std::string& otherwise);

// The model's weights = the checkpoint's, refreshed; only what the shard holds is read.
void read_weights(CheckpointReader& reader, Model& model);

// Moments and step count = the checkpoint's.
void read_moments(CheckpointReader& reader, const Model& model, AdamWOptimizer& optimizer);

}  // namespace kvloom
