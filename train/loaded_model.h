// A checkpoint's model, for what runs it and does not train it on.
#pragma once

#include <memory>
#include <string>

#include "core/model.h"
#include "proto/manifest.pb.h"

namespace kvloom {

// With its tokenizer's identity and the state it was saved in.
struct LoadedModel {
  std::unique_ptr<Model> model;
  proto::Manifest manifest;
};

// `path` is a checkpoint, or an output directory, of which the best or else the newest whole one is taken. Throws
// InputError naming what cannot be used.
LoadedModel load_model(const std::string& path, DType compute, Allocator& allocator);

}  // namespace kvloom
