#include "core/checkpoint_writer.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <system_error>
#include <unordered_map>
#include <utility>

#include "core/checkpoint_folder.h"
#include "core/checkpoint_manifest.h"
#include "core/checksum.h"
#include "core/file.h"
#include "core/hdf5.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

namespace fs = std::filesystem;

std::span<const std::byte> bytes_of(const TensorSlice& slice) {
  return {static_cast<const std::byte*>(slice.data),
          static_cast<std::size_t>(element_count(slice.shape)) * size_of(slice.dtype)};
}

void check_slice(const TensorSlice& slice) {
  if (slice.name.empty()) reject_input("checkpoint: a tensor has no name");
  for (const fs::path& component : fs::path(slice.name)) {
    if (component.empty() || component == "." || component == ".." || component == "/") {
      reject_input("checkpoint: '{}' cannot name a tensor", slice.name);
    }
  }
  if (!checked_element_count(slice.global_shape) || !is_inside({slice.offset, slice.shape}, slice.global_shape)) {
    reject_input("checkpoint: slice {} at {} of tensor {} is not inside {}", to_string(slice.shape),
                 to_string(slice.offset), slice.name, to_string(slice.global_shape));
  }
}

// Cuts along the first axis into slices of at most `limit` bytes or one row.
std::vector<TensorSlice> cut(const TensorSlice& slice, std::uint64_t limit) {
  const std::size_t bytes = bytes_of(slice).size();
  if (bytes <= limit || slice.shape.empty()) return {slice};
  const std::int64_t rows = slice.shape[0];
  const std::size_t row_bytes = bytes / static_cast<std::size_t>(rows);
  const auto rows_a_cut = static_cast<std::int64_t>(std::max<std::uint64_t>(1, limit / row_bytes));
  std::vector<TensorSlice> cuts;
  for (std::int64_t row = 0; row < rows; row += rows_a_cut) {
    TensorSlice piece = slice;
    piece.offset[0] += row;
    piece.shape[0] = std::min(rows_a_cut, rows - row);
    piece.data = bytes_of(slice).data() + static_cast<std::size_t>(row) * row_bytes;
    cuts.push_back(std::move(piece));
  }
  return cuts;
}

// Collects slices and writes a shard file whenever the next one would make it too large.
class PartWriter {
 public:
  PartWriter(fs::path folder, int part, std::uint64_t largest_shard)
      : folder_(std::move(folder)), part_(part), largest_shard_(largest_shard) {}

  void add(const TensorSlice& slice) {
    check_slice(slice);
    describe(slice);  // a tensor without elements is kept by name
    if (bytes_of(slice).empty()) return;
    for (TensorSlice& piece : cut(slice, largest_shard_)) {
      const std::size_t bytes = bytes_of(piece).size();
      if (!waiting_.empty() && waiting_bytes_ + bytes > largest_shard_) write_shard();
      waiting_bytes_ += bytes;
      waiting_.push_back(std::move(piece));
    }
  }

  proto::ManifestPart finish() {
    if (!waiting_.empty()) write_shard();
    return std::move(description_);
  }

 private:
  void write_shard() {
    const auto index = static_cast<std::uint32_t>(description_.files_size());
    const fs::path path = folder_ / shard_name(part_, index);
    const std::vector<std::byte> image = make_image(path, index);
    write_file_durably(path, image);
    proto::ShardFile& file = *description_.add_files();
    file.set_name(path.filename().string());
    file.set_bytes(image.size());
    file.set_checksum(checksum(image));
    waiting_.clear();
    waiting_bytes_ = 0;
  }

  std::vector<std::byte> make_image(const fs::path& path, std::uint32_t index) {
    constexpr std::size_t kRoomForMetadata = 64 << 10;
    const hdf5::File file = hdf5::File::create_in_memory(path.string(), waiting_bytes_ + kRoomForMetadata);
    for (const TensorSlice& slice : waiting_) {
      const std::string dataset = fmt::format("/{}[{}]", slice.name, fmt::join(slice.offset, ","));
      hdf5::write_dataset(file, dataset, slice.shape, slice.dtype, slice.data);
      proto::Slice& written = *describe(slice).add_slices();
      written.mutable_offset()->Assign(slice.offset.begin(), slice.offset.end());
      written.mutable_shape()->Assign(slice.shape.begin(), slice.shape.end());
      written.set_file(index);
      written.set_dataset(dataset);
      written.set_checksum(checksum(bytes_of(slice)));
    }
    return file.image();
  }

  // The tensor's entry in the description, made at its first slice.
  proto::TensorEntry& describe(const TensorSlice& slice) {
    const auto [known, is_new] = entries_.try_emplace(slice.name, description_.tensors_size());
    if (!is_new) {
      proto::TensorEntry& entry = *description_.mutable_tensors(known->second);
      if (entry.dtype() != name_of(slice.dtype) || shape_of(entry.shape()) != slice.global_shape) {
        reject_input("checkpoint: slices disagree about tensor {}: {} {} and {} {}", slice.name, entry.dtype(),
                     to_string(shape_of(entry.shape())), name_of(slice.dtype), to_string(slice.global_shape));
      }
      return entry;
    }
    proto::TensorEntry& entry = *description_.add_tensors();
    entry.set_name(slice.name);
    entry.mutable_shape()->Assign(slice.global_shape.begin(), slice.global_shape.end());
    entry.set_dtype(std::string(name_of(slice.dtype)));
    return entry;
  }

  fs::path folder_;
  int part_;
  std::uint64_t largest_shard_;
  std::vector<TensorSlice> waiting_;
  std::uint64_t waiting_bytes_ = 0;
  proto::ManifestPart description_;
  std::unordered_map<std::string, int> entries_;
};

// What stands at `folder` and is more than a checkpoint, or less, goes aside as it is.
std::optional<fs::path> make_room_at(const fs::path& folder) {
  std::error_code error;
  const fs::file_status status = fs::symlink_status(folder, error);
  if (!fs::exists(status) || (fs::is_directory(status) && holds_only_checkpoint_files(folder))) return std::nullopt;
  return set_aside(folder);
}

// Puts `partial` at `folder`. At every moment a checkpoint stands there; where the file system cannot exchange two
// names in one step, the old one is beside it for the moment between two renames and comes back with the next save.
void put_in_place(const fs::path& partial, const fs::path& folder) {
  std::error_code error;
  if (!fs::exists(folder, error)) {
    rename_file(partial, folder);
    return sync_folder(parent_of(folder));
  }
  const fs::path replaced = replaced_folder_of(folder);
  if (exchange_files(partial, folder)) {
    sync_folder(parent_of(folder));
    fs::remove_all(partial, error);
    return;
  }
  rename_file(folder, replaced);
  rename_file(partial, folder);
  sync_folder(parent_of(folder));
  fs::remove_all(replaced, error);
}

}  // namespace

proto::ManifestPart write_checkpoint_part(const fs::path& folder, int part, std::span<const TensorSlice> slices,
                                          std::uint64_t largest_shard) {
  PartWriter writer(partial_folder_of(folder), part, largest_shard);
  for (const TensorSlice& slice : slices) writer.add(slice);
  return writer.finish();
}

CheckpointWriter::CheckpointWriter(fs::path folder)
    : folder_(without_trailing_slash(folder)), partial_(partial_folder_of(folder_)) {
  std::error_code error;
  fs::create_directories(parent_of(folder_), error);
  if (error) fail("cannot make folder {}: {}", parent_of(folder_).string(), error.message());
  clear_interrupted_save(folder_);
  fs::create_directory(partial_, error);
  if (error) fail("cannot make folder {}: {}", partial_.string(), error.message());
}

CheckpointWriter::~CheckpointWriter() {
  std::error_code ignored;
  if (!committed_) fs::remove_all(partial_, ignored);
}

proto::ManifestPart CheckpointWriter::write_part(int part, std::span<const TensorSlice> slices) const {
  return write_checkpoint_part(folder_, part, slices);
}

std::optional<fs::path> CheckpointWriter::commit(proto::Manifest manifest, std::span<const proto::ManifestPart> parts) {
  manifest.set_format(kManifestFormat);
  for (const proto::ManifestPart& part : parts) merge_part(part, manifest);
  const fs::path path = partial_ / kManifestName;
  check_manifest(manifest, path.string());
  const std::string sealed = seal_manifest(manifest);
  write_file_durably(path, std::as_bytes(std::span(sealed)));
  sync_folder(partial_);
  std::optional<fs::path> aside = make_room_at(folder_);
  put_in_place(partial_, folder_);
  committed_ = true;
  return aside;
}

}  // namespace kvloom
