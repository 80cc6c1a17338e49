#include "train/loaded_model.h"

#include "core/checkpoint_reader.h"
#include "core/convert/model_source.h"
#include "train/training_checkpoint.h"

namespace kvloom {

LoadedModel load_model(const std::string& path, DType compute, Allocator& allocator) {
  CheckpointReader reader(checkpoint_named(path));
  LoadedModel loaded{std::make_unique<Model>(ModelConfig::from_proto(reader.manifest().model()), compute, allocator),
                     reader.manifest()};
  read_weights(reader, *loaded.model);
  return loaded;
}

}  // namespace kvloom
