#include "train/training_checkpoint.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/util/message_differencer.h>

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "core/checkpoint_folder.h"
#include "core/checkpoint_writer.h"
#include "core/rectangle.h"

namespace kvloom {
namespace {

constexpr const char* kMomentum = "optimizer/momentum/";
constexpr const char* kVariance = "optimizer/variance/";

// The elements of `range` of a flat buffer that belong to a parameter, as rectangles of the whole parameter, with their
// places in a buffer that holds just the range.
struct Piece {
  Rectangle rectangle;
  std::int64_t at;
};

std::vector<Piece> pieces_of(const Parameter& parameter, const ElementRange& range) {
  const std::int64_t begin = std::max(range.begin, parameter.offset);
  const std::int64_t end = std::min(range.end, parameter.offset + element_count(parameter.shape));
  std::vector<Piece> pieces;
  std::int64_t at = begin - range.begin;
  for (Rectangle& rectangle : rectangles_of_range(parameter.shape, begin - parameter.offset, end - parameter.offset)) {
    for (std::size_t axis = 0; axis < rectangle.offset.size(); ++axis) {
      rectangle.offset[axis] += parameter.global_offset[axis];
    }
    const std::int64_t count = element_count(rectangle.shape);
    pieces.push_back({std::move(rectangle), at});
    at += count;
  }
  return pieces;
}

// `values` f32 [range.size()], of the host.
void add_slices(const Model& model, const Tensor& values, const ElementRange& range, const std::string& prefix,
                std::vector<TensorSlice>& slices) {
  for (const Parameter& parameter : model.layout().all()) {
    if (!parameter.first_copy) continue;
    for (const Piece& piece : pieces_of(parameter, range)) {
      slices.push_back({.name = prefix + parameter.name,
                        .global_shape = parameter.global_shape,
                        .dtype = DType::kF32,
                        .offset = piece.rectangle.offset,
                        .shape = piece.rectangle.shape,
                        .data = values.as<float>().data() + piece.at});
    }
  }
}

void read_range(CheckpointReader& reader, const Model& model, const std::string& prefix, const ElementRange& range,
                Tensor& values) {
  CachingCpuAllocator host;
  const bool is_there = values.device().kind == Device::Kind::kCpu;
  Tensor staged = is_there ? values : Tensor::empty(host, values.shape(), DType::kF32);
  for (const Parameter& parameter : model.layout().all()) {
    const std::string name = prefix + parameter.name;
    if (!reader.has(name)) reject_input("'{}' has no tensor '{}'", reader.folder().string(), name);
    const auto& stored = reader.tensor(name).shape();
    if (!std::ranges::equal(stored, parameter.global_shape)) {
      reject_input("'{}': tensor '{}' is {}, the model's is {}", reader.folder().string(), name,
                   to_string(Shape(stored.begin(), stored.end())), to_string(parameter.global_shape));
    }
    for (const Piece& piece : pieces_of(parameter, range)) {
      reader.read_widened(name, piece.rectangle, staged.as<float>().data() + piece.at);
    }
  }
  if (!is_there) values.assign(std::span<const float>(staged.as<float>()));
}

}  // namespace

std::optional<std::filesystem::path> write_training_checkpoint(const std::filesystem::path& folder, MeshRanks& ranks,
                                                               const Model& model, AdamWOptimizer& optimizer,
                                                               UpdateSharing sharing, proto::Manifest manifest) {
  const bool first_data = ranks.place().data == 0;
  CachingCpuAllocator host;
  const Tensor master = first_data ? model.master().on_host(host) : Tensor();
  const bool writes_moments = first_data || sharing == UpdateSharing::kShare;
  const Tensor momentum = writes_moments ? optimizer.momentum().on_host(host) : Tensor();
  const Tensor variance = writes_moments ? optimizer.variance().on_host(host) : Tensor();
  std::vector<TensorSlice> slices;
  if (first_data) add_slices(model, master, {0, model.layout().count()}, "", slices);
  if (writes_moments) {
    add_slices(model, momentum, optimizer.range(), kMomentum, slices);
    add_slices(model, variance, optimizer.range(), kVariance, slices);
  }
  const int rank = ranks.world().rank();
  std::optional<CheckpointWriter> writer;
  if (rank == 0) writer.emplace(folder);
  ranks.world().barrier();
  const proto::ManifestPart part = write_checkpoint_part(folder, rank, slices);
  std::vector<proto::ManifestPart> parts;
  for (const std::string& bytes : all_gather_bytes(ranks.world(), part.SerializeAsString())) {
    if (!parts.emplace_back().ParseFromString(bytes)) fail("checkpoint: a rank's part of the manifest is damaged");
  }
  std::optional<std::filesystem::path> aside;
  if (rank == 0) aside = writer->commit(std::move(manifest), parts);
  ranks.world().barrier();
  return aside;
}

void check_same_model(const CheckpointReader& reader, const proto::ModelConfig& wanted) {
  const proto::ModelConfig stored = ModelConfig::from_proto(reader.manifest().model()).to_proto();
  const proto::ModelConfig given = ModelConfig::from_proto(wanted).to_proto();
  std::string difference;
  google::protobuf::util::MessageDifferencer differencer;
  differencer.ReportDifferencesToString(&difference);
  if (differencer.Compare(stored, given)) return;
  std::ranges::replace(difference, '\n', ';');
  reject_input("'{}' holds another model than the config's; set what differs in the config's model: {}",
               reader.folder().string(), difference);
}

void check_same_weights(const CheckpointReader& reader, proto::ModelConfig wanted) {
  const ModelConfig stored = ModelConfig::from_proto(reader.manifest().model());
  wanted.set_context(static_cast<std::uint32_t>(stored.context));
  wanted.set_initializer_range(stored.initializer_range);
  check_same_model(reader, wanted);
}

CarriedTokenizer tokenizer_of(const proto::Manifest& manifest) {
  return {manifest.tokenizer_kind(), manifest.tokenizer()};
}

CarriedTokenizer tokenizer_of(const TokenFile& file) { return {file.tokenizer_kind(), file.tokenizer_model()}; }

void check_tokenizer(const CarriedTokenizer& tokenizer, const std::string& model, const TokenFile& file,
                     const std::string& path, const std::string& otherwise) {
  if (tokenizer.kind.empty() || same_tokenizer(tokenizer, tokenizer_of(file))) return;
  if (tokenizer.kind == file.tokenizer_kind()) {
    reject_input("'{}' holds tokens of another {} tokenizer than that of '{}'; make tokens with that one, or {}", path,
                 tokenizer.kind, model, otherwise);
  }
  reject_input("'{}' holds tokens of a {} tokenizer, '{}' has one of {}; make tokens with that one, or {}", path,
               file.tokenizer_kind(), model, tokenizer.kind, otherwise);
}

void read_weights(CheckpointReader& reader, Model& model) {
  read_range(reader, model, "", {0, model.layout().count()}, model.master());
  model.refresh();
}

void read_moments(CheckpointReader& reader, const Model& model, AdamWOptimizer& optimizer) {
  read_range(reader, model, kMomentum, optimizer.range(), optimizer.momentum());
  read_range(reader, model, kVariance, optimizer.range(), optimizer.variance());
  optimizer.set_steps(static_cast<std::int64_t>(reader.manifest().training().step()));
}

}  // namespace kvloom
