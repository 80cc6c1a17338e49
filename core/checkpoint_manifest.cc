#include "core/checkpoint_manifest.h"

#include <array>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "core/checksum.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

constexpr std::size_t kMostAxes = 32;  // HDF5's limit

std::uint64_t checksum_of(std::string_view bytes) { return checksum(std::as_bytes(std::span(bytes))); }

void check_files(const proto::Manifest& manifest, const std::string& where) {
  std::unordered_set<std::string> seen;
  for (const proto::ShardFile& file : manifest.files()) {
    const std::string& name = file.name();
    if (name.empty() || name == "." || name == ".." || name.find('/') != std::string::npos ||
        name.find('\0') != std::string::npos) {
      reject_input("{}: '{}' cannot be the name of a shard file", where, name);
    }
    if (!seen.insert(name).second) reject_input("{}: shard file {} is listed twice", where, name);
  }
}

void check_tensor(const proto::Manifest& manifest, const proto::TensorEntry& tensor, const std::string& where) {
  dtype_named(tensor.dtype());
  const Shape shape = shape_of(tensor.shape());
  if (shape.size() > kMostAxes) reject_input("{}: tensor {} has {} axes", where, tensor.name(), shape.size());
  std::vector<Rectangle> rectangles;
  for (const proto::Slice& slice : tensor.slices()) {
    if (slice.file() >= static_cast<std::uint32_t>(manifest.files_size())) {
      reject_input("{}: tensor {} has a slice in file {} of {}", where, tensor.name(), slice.file(),
                   manifest.files_size());
    }
    rectangles.push_back(rectangle_of(slice));
  }
  if (const auto fault = tiling_fault(shape, rectangles))
    reject_input("{}: tensor {}: {}", where, tensor.name(), *fault);
}

}  // namespace

std::string seal_manifest(const proto::Manifest& manifest) {
  proto::SealedManifest sealed;
  if (!manifest.SerializeToString(sealed.mutable_manifest())) fail("checkpoint: the manifest is larger than 2 GiB");
  sealed.set_checksum(checksum_of(sealed.manifest()));
  std::string bytes;
  if (!sealed.SerializeToString(&bytes)) fail("checkpoint: the manifest is larger than 2 GiB");
  return bytes;
}

proto::Manifest unseal_manifest(std::string_view bytes, const std::string& where) {
  proto::SealedManifest sealed;
  const auto size = static_cast<int>(bytes.size());
  if (static_cast<std::size_t>(size) != bytes.size() || !sealed.ParseFromArray(bytes.data(), size)) {
    reject_input("{} is truncated, damaged or no manifest of kvloom", where);
  }
  if (sealed.checksum() != checksum_of(sealed.manifest())) reject_input("{} is damaged: its checksum is wrong", where);
  proto::Manifest manifest;
  if (!manifest.ParseFromString(sealed.manifest())) reject_input("{} holds no manifest that can be read", where);
  check_manifest(manifest, where);
  return manifest;
}

void check_manifest(const proto::Manifest& manifest, const std::string& where) {
  if (manifest.format() != kManifestFormat) {
    reject_input("{} is of format {}; this kvloom reads format {}", where, manifest.format(), kManifestFormat);
  }
  check_files(manifest, where);
  std::unordered_set<std::string> seen;
  for (const proto::TensorEntry& tensor : manifest.tensors()) {
    if (!seen.insert(tensor.name()).second) reject_input("{}: tensor {} is listed twice", where, tensor.name());
    check_tensor(manifest, tensor, where);
  }
}

void merge_part(const proto::ManifestPart& part, proto::Manifest& manifest) {
  const auto first_file = static_cast<std::uint32_t>(manifest.files_size());
  manifest.mutable_files()->MergeFrom(part.files());
  std::unordered_map<std::string, proto::TensorEntry*> known;
  for (proto::TensorEntry& tensor : *manifest.mutable_tensors()) known[tensor.name()] = &tensor;
  for (const proto::TensorEntry& tensor : part.tensors()) {
    proto::TensorEntry*& entry = known[tensor.name()];
    if (entry == nullptr) {
      entry = manifest.add_tensors();
      entry->set_name(tensor.name());
      entry->set_dtype(tensor.dtype());
      entry->mutable_shape()->CopyFrom(tensor.shape());
    } else if (entry->dtype() != tensor.dtype() || shape_of(entry->shape()) != shape_of(tensor.shape())) {
      reject_input("checkpoint: parts disagree about tensor {}: {} {} and {} {}", tensor.name(), entry->dtype(),
                   to_string(shape_of(entry->shape())), tensor.dtype(), to_string(shape_of(tensor.shape())));
    }
    for (const proto::Slice& slice : tensor.slices()) {
      proto::Slice& merged = *entry->add_slices();
      merged = slice;
      merged.set_file(first_file + slice.file());
    }
  }
}

Shape shape_of(const google::protobuf::RepeatedField<std::int64_t>& sizes) { return {sizes.begin(), sizes.end()}; }

Rectangle rectangle_of(const proto::Slice& slice) { return {shape_of(slice.offset()), shape_of(slice.shape())}; }

DType dtype_named(std::string_view name) {
  constexpr std::array kAll = {DType::kF32, DType::kBF16, DType::kF16, DType::kF64, DType::kI32,
                               DType::kI64, DType::kU8,   DType::kU16, DType::kU32};
  for (const DType dtype : kAll) {
    if (name_of(dtype) == name) return dtype;
  }
  reject_input("'{}' is no dtype; known are f32, bf16, f16, f64, i32, i64, u8, u16, u32", name);
}

}  // namespace kvloom
