#include "train/training_checkpoint.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/util/message_differencer.h>

#include <algorithm>
#include <vector>

#include "core/checkpoint_folder.h"
#include "core/checkpoint_writer.h"
#include "train/trainer.h"

namespace kvloom {
namespace {

constexpr const char* kMomentum = "optimizer/momentum/";
constexpr const char* kVariance = "optimizer/variance/";

void add_slices(const Model& model, const Tensor& flat, const std::string& prefix, std::vector<TensorSlice>& slices) {
  for (const Parameter& parameter : model.layout().all()) {
    slices.push_back({.name = prefix + parameter.name,
                      .global_shape = parameter.shape,
                      .dtype = DType::kF32,
                      .offset = Shape(parameter.shape.size(), 0),
                      .shape = parameter.shape,
                      .data = flat.view(parameter.offset, parameter.shape).data()});
  }
}

void read_flat(CheckpointReader& reader, const Model& model, const std::string& prefix, Tensor& flat) {
  for (const Parameter& parameter : model.layout().all()) {
    const std::string name = prefix + parameter.name;
    if (!reader.has(name)) reject_input("'{}' has no tensor '{}'", reader.folder().string(), name);
    const auto& stored = reader.tensor(name).shape();
    if (!std::ranges::equal(stored, parameter.shape)) {
      reject_input("'{}': tensor '{}' is {}, the model's is {}", reader.folder().string(), name,
                   to_string(Shape(stored.begin(), stored.end())), to_string(parameter.shape));
    }
    reader.read(name, DType::kF32, flat.view(parameter.offset, parameter.shape).data());
  }
}

}  // namespace

void write_training_checkpoint(const std::filesystem::path& folder, Model& model, AdamWOptimizer& optimizer,
                               proto::Manifest manifest) {
  std::vector<TensorSlice> slices;
  add_slices(model, model.master(), "", slices);
  add_slices(model, optimizer.momentum(), kMomentum, slices);
  add_slices(model, optimizer.variance(), kVariance, slices);
  CheckpointWriter writer(folder);
  const proto::ManifestPart part = writer.write_part(0, slices);
  writer.commit(std::move(manifest), std::span(&part, 1));
}

void check_same_model(const CheckpointReader& reader, const proto::ModelConfig& wanted) {
  const proto::ModelConfig stored = ModelConfig::from_proto(reader.manifest().model()).to_proto();
  const proto::ModelConfig given = ModelConfig::from_proto(wanted).to_proto();
  std::string difference;
  google::protobuf::util::MessageDifferencer differencer;
  differencer.ReportDifferencesToString(&difference);
  if (differencer.Compare(stored, given)) return;
  std::ranges::replace(difference, '\n', ';');
  reject_input("'{}' holds another model than the config's: {}", reader.folder().string(), difference);
}

void read_weights(CheckpointReader& reader, Model& model) {
  read_flat(reader, model, "", model.master());
  model.refresh();
}

void read_moments(CheckpointReader& reader, const Model& model, AdamWOptimizer& optimizer) {
  read_flat(reader, model, kMomentum, optimizer.momentum());
  read_flat(reader, model, kVariance, optimizer.variance());
  optimizer.set_steps(static_cast<std::int64_t>(reader.manifest().training().step()));
}

LoadedModel load_model(const std::string& path, DType compute, Allocator& allocator) {
  std::filesystem::path folder = path;
  if (!std::filesystem::exists(folder)) reject_input("'{}': there is no such checkpoint", path);
  if (!std::filesystem::exists(folder / "manifest.pb")) {
    std::optional<CheckpointPlace> place = best_checkpoint(folder);
    if (!place.has_value()) place = latest_checkpoint(folder).place;
    if (!place.has_value()) reject_input("'{}' holds no whole checkpoint", path);
    folder = place->folder;
  }
  CheckpointReader reader(folder);
  LoadedModel loaded{std::make_unique<Model>(ModelConfig::from_proto(reader.manifest().model()), compute, allocator),
                     reader.manifest()};
  read_weights(reader, *loaded.model);
  return loaded;
}

}  // namespace kvloom
