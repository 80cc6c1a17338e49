#include "core/checkpoint_reader.h"

#include <algorithm>
#include <span>
#include <system_error>

#include "core/checkpoint_folder.h"
#include "core/checkpoint_manifest.h"
#include "core/checksum.h"
#include "core/file.h"
#include "kernels/elementwise.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kLargestManifest = (std::uint64_t{1} << 31) - 1;  // Protocol Buffers' limit
constexpr std::size_t kMostOpenFiles = 16;

proto::Manifest read_manifest(const fs::path& folder) {
  const fs::path path = folder / kManifestName;
  std::error_code error;
  if (!fs::exists(path, error)) reject_input("{} is no checkpoint: it has no {}", folder.string(), kManifestName);
  return unseal_manifest(read_file(path, kLargestManifest), path.string());
}

void check_size(const fs::path& path, std::uint64_t bytes) {
  std::error_code error;
  const std::uintmax_t found = fs::file_size(path, error);
  if (error) reject_input("cannot read {}: {}", path.string(), error.message());
  if (found != bytes) reject_input("{} has {} bytes where the checkpoint has {}", path.string(), found, bytes);
}

std::size_t bytes_of(const Shape& shape, DType dtype) {
  return static_cast<std::size_t>(element_count(shape)) * size_of(dtype);
}

// `rectangle` as seen from `origin`.
Rectangle relative(Rectangle rectangle, const Shape& origin) {
  for (std::size_t axis = 0; axis < origin.size(); ++axis) rectangle.offset[axis] -= origin[axis];
  return rectangle;
}

}  // namespace

CheckpointReader::CheckpointReader(fs::path folder)
    : folder_(without_trailing_slash(folder)), manifest_(read_manifest(folder_)) {
  for (const proto::ShardFile& file : manifest_.files()) check_size(folder_ / file.name(), file.bytes());
  for (int i = 0; i < manifest_.tensors_size(); ++i) tensors_[manifest_.tensors(i).name()] = i;
  checked_.resize(static_cast<std::size_t>(manifest_.files_size()), false);
}

const proto::TensorEntry& CheckpointReader::tensor(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) reject_input("{} has no tensor {}", folder_.string(), name);
  return manifest_.tensors(found->second);
}

void CheckpointReader::read(const std::string& name, const Rectangle& wanted, DType dtype, void* out) {
  const proto::TensorEntry& entry = tensor(name);
  if (entry.dtype() != name_of(dtype)) {
    reject_input("{}: tensor {} is {}, read as {}", folder_.string(), name, entry.dtype(), name_of(dtype));
  }
  if (const Shape shape = shape_of(entry.shape()); !is_inside(wanted, shape)) {
    reject_input("{}: {} at {} is not inside tensor {} of shape {}", folder_.string(), to_string(wanted.shape),
                 to_string(wanted.offset), name, to_string(shape));
  }
  for (const proto::Slice& slice : entry.slices()) read_slice(entry, slice, wanted, out);
}

void CheckpointReader::read(const std::string& name, DType dtype, void* out) {
  Shape shape = shape_of(tensor(name).shape());
  Shape origin(shape.size(), 0);
  read(name, {std::move(origin), std::move(shape)}, dtype, out);
}

void CheckpointReader::read_widened(const std::string& name, const Rectangle& wanted, float* out) {
  const DType stored = dtype_named(tensor(name).dtype());
  if (stored == DType::kF32) return read(name, wanted, stored, out);
  if (stored != DType::kBF16 && stored != DType::kF16) {
    reject_input("{}: tensor {} is {}; right are f32, bf16 and f16", folder_.string(), name, name_of(stored));
  }
  std::vector<std::byte> narrow(bytes_of(wanted.shape, stored));
  read(name, wanted, stored, narrow.data());
  cpu::run(Cast{.input = narrow.data(),
                .output = out,
                .rows = 1,
                .columns = element_count(wanted.shape),
                .input_dtype = stored,
                .output_dtype = DType::kF32});
}

void CheckpointReader::verify_all() {
  for (std::uint32_t file = 0; file < checked_.size(); ++file) verify_file(file);
}

void CheckpointReader::verify_file(std::uint32_t file) {
  check_content(file);
  std::vector<std::byte> buffer;
  for (const proto::TensorEntry& entry : manifest_.tensors()) {
    for (const proto::Slice& slice : entry.slices()) {
      if (slice.file() != file) continue;
      const Rectangle all = rectangle_of(slice);
      buffer.resize(bytes_of(all.shape, dtype_named(entry.dtype())));
      read_slice(entry, slice, all, buffer.data());
    }
  }
}

fs::path CheckpointReader::path_of(std::uint32_t file) const {
  return folder_ / manifest_.files(static_cast<int>(file)).name();
}

void CheckpointReader::check_content(std::uint32_t file) {
  if (checked_[file]) return;
  const proto::ShardFile& expected = manifest_.files(static_cast<int>(file));
  const fs::path path = path_of(file);
  check_size(path, expected.bytes());
  const MappedFile content(path);
  if (file + 1 < checked_.size() && !checked_[file + 1]) expect_file(path_of(file + 1));
  load_mapped(content.bytes());
  if (checksum(content.bytes()) != expected.checksum()) {
    throw DamagedCheckpoint(fmt::format("{} is damaged: its checksum is wrong", path.string()));
  }
  checked_[file] = true;
}

const hdf5::File& CheckpointReader::open(std::uint32_t file) {
  const auto found =
      std::find_if(opened_.begin(), opened_.end(), [&](const auto& entry) { return entry.first == file; });
  if (found != opened_.end()) return found->second;
  check_content(file);
  if (opened_.size() == kMostOpenFiles) opened_.pop_front();
  opened_.emplace_back(file, hdf5::File::open(path_of(file)));
  return opened_.back().second;
}

void CheckpointReader::read_slice(const proto::TensorEntry& entry, const proto::Slice& slice, const Rectangle& wanted,
                                  void* out) {
  const Rectangle held = rectangle_of(slice);
  const auto shared = intersection(held, wanted);
  if (!shared) return;
  hdf5::read_dataset(open(slice.file()), slice.dataset(), held.shape, dtype_named(entry.dtype()),
                     relative(*shared, held.offset), {wanted.shape, relative(*shared, wanted.offset), out});
  if (held == wanted) check_slice(entry, slice, out);
}

void CheckpointReader::check_slice(const proto::TensorEntry& entry, const proto::Slice& slice, const void* data) const {
  const std::size_t bytes = bytes_of(shape_of(slice.shape()), dtype_named(entry.dtype()));
  if (checksum({static_cast<const std::byte*>(data), bytes}) != slice.checksum()) {
    throw DamagedCheckpoint(fmt::format("{}: dataset {} is damaged: its checksum is wrong",
                                        path_of(slice.file()).string(), slice.dataset()));
  }
}

}  // namespace kvloom
