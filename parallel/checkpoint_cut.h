// How a checkpoint is cut so that each rank of a mesh reads files of its own.
#pragma once

#include "core/config.h"
#include "core/convert/tensor_target.h"
#include "proto/run.pb.h"

namespace kvloom {

// Every weight, and optimizer state of the same name, in the parts that the pipeline and tensor ranks of `mesh` hold,
// stages of even size; what several hold goes to the first. Throws InputError when the model cannot be cut so.
TensorCut cut_for_mesh(const ModelConfig& model, const proto::MeshConfig& mesh);

}  // namespace kvloom
