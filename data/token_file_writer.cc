#include <fcntl.h>
#include <hdf5.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <utility>

#include "core/checksum.h"
#include "core/hdf5.h"
#include "data/token_file.h"
#include "data/token_file_format.h"

namespace kvloom {
namespace {

std::span<const std::byte> bytes_of(const auto& container) {
  return std::as_bytes(std::span(container.data(), container.size()));
}

// Makes the empty datasets and learns where their bytes will stand.
class Skeleton {
 public:
  explicit Skeleton(const std::filesystem::path& path) : name_(path.string()) {
    hdf5::silence();
    const hdf5::Handle creation(check(H5Pcreate(H5P_FILE_CREATE), "H5Pcreate"), H5Pclose);
    check(H5Pset_userblock(creation.get(), kTokenFileUserBlock), "H5Pset_userblock");
    file_ = hdf5::Handle(check(H5Fcreate(name_.c_str(), H5F_ACC_TRUNC, creation.get(), H5P_DEFAULT), "H5Fcreate"),
                         H5Fclose);
    const hdf5::Handle group(
        check(H5Gcreate2(file_.get(), "validation", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT), "H5Gcreate2"), H5Gclose);
  }

  // The offset of `count` contiguous elements of the type, or 0 when there are none.
  std::uint64_t add(const char* name, hid_t type, std::uint64_t count) {
    const hsize_t size = count;
    const hdf5::Handle space(check(H5Screate_simple(1, &size, nullptr), "H5Screate_simple"), H5Sclose);
    const hdf5::Handle creation(check(H5Pcreate(H5P_DATASET_CREATE), "H5Pcreate"), H5Pclose);
    check(H5Pset_alloc_time(creation.get(), H5D_ALLOC_TIME_EARLY), "H5Pset_alloc_time");
    check(H5Pset_fill_time(creation.get(), H5D_FILL_TIME_NEVER), "H5Pset_fill_time");
    // Equal input gives an equal file, whenever it is written.
    check(H5Pset_obj_track_times(creation.get(), false), "H5Pset_obj_track_times");
    const hdf5::Handle dataset(
        check(H5Dcreate2(file_.get(), name, type, space.get(), H5P_DEFAULT, creation.get(), H5P_DEFAULT), "H5Dcreate2"),
        H5Dclose);
    if (count == 0) return 0;
    const haddr_t offset = H5Dget_offset(dataset.get());
    if (offset == HADDR_UNDEF) fail("'{}': H5Dget_offset knows no place for '{}'", name_, name);
    return offset;
  }

  void close() {
    check(H5Fflush(file_.get(), H5F_SCOPE_GLOBAL), "H5Fflush");
    file_ = hdf5::Handle();
  }

 private:
  hid_t check(hid_t result, const char* call) const { return hdf5::check(result, call, name_, hdf5::Fault::kRun); }

  std::string name_;
  hdf5::Handle file_;
};

// A file being filled in at places, every error seen.
class PlacedFile {
 public:
  explicit PlacedFile(const std::filesystem::path& path) : path_(path), descriptor_(::open(path.c_str(), O_RDWR)) {
    if (descriptor_ < 0) fail("'{}': cannot be written: {}", path_.string(), std::strerror(errno));
  }
  ~PlacedFile() { ::close(descriptor_); }
  PlacedFile(const PlacedFile&) = delete;
  PlacedFile& operator=(const PlacedFile&) = delete;

  void write(std::uint64_t offset, std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const ssize_t written = ::pwrite(descriptor_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
      if (written < 0 && errno == EINTR) continue;
      if (written <= 0) fail("'{}': writing {} bytes failed: {}", path_.string(), bytes.size(), std::strerror(errno));
      bytes = bytes.subspan(static_cast<std::size_t>(written));
      offset += static_cast<std::uint64_t>(written);
    }
  }

  // Piece by piece: of a mapped file all that was read would count as memory in use.
  void copy(const std::filesystem::path& from, std::uint64_t offset) {
    std::ifstream source(from, std::ios::binary);
    std::vector<std::byte> piece(kTokenFileBlock);
    while (source) {
      source.read(reinterpret_cast<char*>(piece.data()), static_cast<std::streamsize>(piece.size()));
      const auto count = static_cast<std::size_t>(source.gcount());
      write(offset, std::span(piece).first(count));
      offset += count;
    }
    if (!source.eof()) fail("'{}': reading failed", from.string());
  }

  void sync() {
    if (::fsync(descriptor_) != 0) fail("'{}': fsync failed: {}", path_.string(), std::strerror(errno));
  }

 private:
  std::filesystem::path path_;
  int descriptor_;
};

}  // namespace

TokenFileWriter::TokenFileWriter(const std::filesystem::path& path, TokenFileDescription description)
    : path_(writable_target(path)),
      lock_(path_),
      description_(std::move(description)),
      dtype_(description_.vocab <= 65536 ? DType::kU16 : DType::kU32) {
  parts_[0].path = hidden_sibling(path_, ".training");
  parts_[1].path = hidden_sibling(path_, ".validation");
  for (PartState& part : parts_) part.file = std::make_unique<OutputFile>(part.path);
}

TokenFileWriter::PartState::~PartState() {
  // Without a file, what stands under the name is another's.
  if (file == nullptr) return;
  file.reset();
  std::error_code ignored;
  std::filesystem::remove(path, ignored);
}

TokenFileWriter::~TokenFileWriter() {
  std::error_code ignored;
  std::filesystem::remove(hidden_sibling(path_, ".partial"), ignored);
}

void TokenFileWriter::begin_document(Part part) {
  PartState& state = parts_[static_cast<std::size_t>(part)];
  state.documents.push_back(state.count);
}

void TokenFileWriter::append(Part part, std::span<const std::int32_t> tokens, std::uint64_t text_bytes) {
  PartState& state = parts_[static_cast<std::size_t>(part)];
  const std::size_t width = size_of(dtype_);
  for (const std::int32_t token : tokens) {
    if (token < 0 || token >= description_.vocab)
      fail("token {} outside of the vocabulary {}", token, description_.vocab);
    largest_token_ = std::max(largest_token_, token);
    const auto value = static_cast<std::uint32_t>(token);
    const auto* bytes = reinterpret_cast<const std::byte*>(&value);
    state.pending.insert(state.pending.end(), bytes, bytes + width);
    if (state.pending.size() == kTokenFileBlock) flush_block(state);
  }
  state.count += tokens.size();
  state.text_bytes += text_bytes;
}

void TokenFileWriter::flush_block(PartState& part) {
  if (part.pending.empty()) return;
  part.checksums.push_back(checksum(part.pending));
  part.file->write(part.pending);
  part.pending.clear();
}

void TokenFileWriter::finish() {
  if (parts_[0].count == 0) reject_input("'{}': the input gave no training tokens", path_.string());
  for (PartState& part : parts_) {
    flush_block(part);
    part.file->sync_and_close();
  }
  const std::filesystem::path partial = hidden_sibling(path_, ".partial");
  assemble(partial);
  rename_file(partial, path_);
  sync_folder(parent_of(path_));
}

void TokenFileWriter::assemble(const std::filesystem::path& partial) {
  std::vector<std::uint64_t> checksums = parts_[0].checksums;
  checksums.insert(checksums.end(), parts_[1].checksums.begin(), parts_[1].checksums.end());
  std::string identity(reinterpret_cast<const char*>(checksums.data()), checksums.size() * sizeof(std::uint64_t));
  identity += description_.tokenizer_kind + description_.tokenizer_model;

  proto::TokenFileHeader header;
  header.set_format(1);
  header.set_dtype(std::string(name_of(dtype_)));
  header.set_vocab(static_cast<std::uint32_t>(description_.vocab));
  header.set_largest_token(static_cast<std::uint32_t>(largest_token_));
  header.set_tokenizer_kind(description_.tokenizer_kind);
  header.set_identity(checksum(bytes_of(identity)));
  header.set_training_text_bytes(parts_[0].text_bytes);
  header.set_validation_text_bytes(parts_[1].text_bytes);
  header.set_created_by(description_.created_by);

  Skeleton skeleton(partial);
  const hid_t token_type = dtype_ == DType::kU16 ? H5T_STD_U16LE : H5T_STD_U32LE;
  std::vector<std::pair<std::uint64_t, std::span<const std::byte>>> small;
  const auto add = [&](const char* name, hid_t type, std::uint64_t count, std::size_t width,
                       std::span<const std::byte> bytes) {
    const std::uint64_t offset = skeleton.add(name, type, count);
    proto::TokenFileDataset& entry = *header.add_datasets();
    entry.set_name(name);
    entry.set_offset(offset);
    entry.set_bytes(count * width);
    if (!bytes.empty() || count == 0) entry.set_checksum(checksum(bytes));
    small.emplace_back(offset, bytes);
    return offset;
  };
  std::array<std::uint64_t, 2> token_offsets{};
  token_offsets[0] = add("tokens", token_type, parts_[0].count, size_of(dtype_), {});
  token_offsets[1] = add("validation/tokens", token_type, parts_[1].count, size_of(dtype_), {});
  add("documents", H5T_STD_U64LE, parts_[0].documents.size(), 8, bytes_of(parts_[0].documents));
  add("validation/documents", H5T_STD_U64LE, parts_[1].documents.size(), 8, bytes_of(parts_[1].documents));
  add("checksums", H5T_STD_U64LE, checksums.size(), 8, bytes_of(checksums));
  add("tokenizer", H5T_STD_U8LE, description_.tokenizer_model.size(), 1, bytes_of(description_.tokenizer_model));
  add("provenance", H5T_STD_U8LE, provenance_.size(), 1, bytes_of(provenance_));
  skeleton.close();

  PlacedFile file(partial);
  for (std::size_t part = 0; part < 2; ++part) {
    if (parts_[part].count == 0) continue;
    file.copy(parts_[part].path, token_offsets[part]);
  }
  for (const auto& [offset, bytes] : small) file.write(offset, bytes);
  header.set_file_bytes(std::filesystem::file_size(partial));
  std::string block(kTokenFileMagic);
  const std::string serialised = header.SerializeAsString();
  const auto length = static_cast<std::uint32_t>(serialised.size());
  block.append(reinterpret_cast<const char*>(&length), sizeof length).append(serialised);
  const std::uint64_t sum = checksum(bytes_of(block));
  block.append(reinterpret_cast<const char*>(&sum), sizeof sum);
  if (block.size() > kTokenFileUserBlock) fail("'{}': a header of {} bytes", path_.string(), block.size());
  file.write(0, bytes_of(block));
  file.sync();
}

}  // namespace kvloom
