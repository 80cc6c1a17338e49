// Reads a checkpoint, whatever parts wrote it, in whatever rectangles the reader wants. Nothing is believed unchecked:
// the manifest by its own checksum, a shard file by its size when the checkpoint opens and by its checksum before HDF5
// sees it.
#pragma once

#include <deque>
#include <filesystem>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/hdf5.h"
#include "core/rectangle.h"
#include "kernels/dtype.h"
#include "proto/manifest.pb.h"

namespace kvloom {

// Bytes that are there, all of them, and are not those that were written.
class DamagedCheckpoint : public InputError {
 public:
  using InputError::InputError;
};

// Every member throws InputError, naming the file, for what is missing, truncated, damaged (DamagedCheckpoint) or
// foreign. One thread at a time.
class CheckpointReader {
 public:
  explicit CheckpointReader(std::filesystem::path folder);

  const std::filesystem::path& folder() const { return folder_; }
  const proto::Manifest& manifest() const { return manifest_; }

  bool has(const std::string& name) const { return tensors_.contains(name); }
  const proto::TensorEntry& tensor(const std::string& name) const;

  // out = the rectangle of the tensor, [wanted.shape] row-major. `dtype` must be the stored one.
  void read(const std::string& name, const Rectangle& wanted, DType dtype, void* out);
  // out = all of the tensor.
  void read(const std::string& name, DType dtype, void* out);

  // out = the rectangle as f32, whatever of f32, bf16 and f16 is stored.
  void read_widened(const std::string& name, const Rectangle& wanted, float* out);

  // Reads everything and checks every checksum.
  void verify_all();
  // The same for one file of the manifest and what lies in it.
  void verify_file(std::uint32_t file);

 private:
  std::filesystem::path path_of(std::uint32_t file) const;
  const hdf5::File& open(std::uint32_t file);
  void check_content(std::uint32_t file);
  void read_slice(const proto::TensorEntry& tensor, const proto::Slice& slice, const Rectangle& wanted, void* out);
  void check_slice(const proto::TensorEntry& tensor, const proto::Slice& slice, const void* data) const;

  std::filesystem::path folder_;
  proto::Manifest manifest_;
  std::unordered_map<std::string, int> tensors_;             // index in the manifest
  std::vector<bool> checked_;                                // by file: its checksum was right
  std::deque<std::pair<std::uint32_t, hdf5::File>> opened_;  // the most recent at the back
};

}  // namespace kvloom
