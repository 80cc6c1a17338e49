// Writes a checkpoint beside its place, synced, and renames it there: a reader sees all of it or none of it.
//
// One CheckpointWriter a checkpoint (rank 0's); any number of parts, each written by whoever holds the tensors. Parts
// travel to the writer as proto::ManifestPart.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "kernels/dtype.h"
#include "proto/manifest.pb.h"

namespace kvloom {

// A rectangle of a tensor, held in host memory.
struct TensorSlice {
  std::string name;  // '/' makes groups in the file; no empty, "." or ".." between them
  Shape global_shape;
  DType dtype = DType::kF32;
  Shape offset;  // in the global tensor
  Shape shape;
  const void* data = nullptr;  // [shape], row-major without gaps
};

// Tensor bytes a shard file holds at most, so that its image fits memory. A larger slice is cut along its first axis; a
// single row is never cut.
inline constexpr std::uint64_t kLargestShard = std::uint64_t{256} << 20;

// Writes the slices as shard-<part>-<n>.h5 into the checkpoint that a CheckpointWriter for `folder` has begun, and
// returns what to hand to its commit. Slices without elements are left out. No two slices of all parts may overlap; one
// of several replicas writes. Throws Error when the disk is full or a file cannot be written, naming it.
proto::ManifestPart write_checkpoint_part(const std::filesystem::path& folder, int part,
                                          std::span<const TensorSlice> slices,
                                          std::uint64_t largest_shard = kLargestShard);

class CheckpointWriter {
 public:
  // Begins the checkpoint `folder`: clears what an interrupted save left beside it, makes the folder to write into.
  // Throws Error when it cannot write there.
  explicit CheckpointWriter(std::filesystem::path folder);
  // Removes what was written, unless it was committed.
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  // Where parts are written until `commit`.
  const std::filesystem::path& partial_folder() const { return partial_; }

  proto::ManifestPart write_part(int part, std::span<const TensorSlice> slices) const;

  // Adds the parts to `manifest` (which brings model, mesh, training state, ...; format is set here), writes it and
  // puts the checkpoint in place of whatever checkpoint was there, whole or damaged. Anything else there, and a
  // checkpoint with other files in its folder, is set aside (core/checkpoint_folder.h); its new place is returned.
  // Throws InputError when the slices do not cover every tensor exactly once.
  std::optional<std::filesystem::path> commit(proto::Manifest manifest, std::span<const proto::ManifestPart> parts);

 private:
  std::filesystem::path folder_;
  std::filesystem::path partial_;
  bool committed_ = false;
};

}  // namespace kvloom
