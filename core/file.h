// Files that are whole or not there: writes whose every error is seen, syncs, atomic replacement, read-only mappings.
// Every function that fails throws Error (InputError where the file was given to read) naming the file and the cause.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace kvloom {

class TargetLock;

// What the operating system says of an error number.
std::string reason_of(int error);

// A file being written, new or emptied. A file that is not closed when this goes away is left as it is.
class OutputFile {
 public:
  explicit OutputFile(std::filesystem::path path);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::uint64_t written() const { return written_; }

  void write(std::span<const std::byte> bytes);
  // Everything written has reached the disk when this returns; no more writes.
  void sync_and_close();

 private:
  std::filesystem::path path_;
  int descriptor_;
  std::uint64_t written_ = 0;
};

// Like OutputFile, but appears under its name only with `commit`, replacing what was there in one step. Until then, and
// for good if it goes away uncommitted, the name keeps its old content.
class AtomicFile {
 public:
  // Throws as writable_target and TargetLock do.
  explicit AtomicFile(const std::filesystem::path& path);
  ~AtomicFile();

  void write(std::span<const std::byte> bytes) { file_.write(bytes); }
  std::uint64_t written() const { return file_.written(); }
  void commit();

 private:
  std::filesystem::path path_;
  std::unique_ptr<TargetLock> lock_;
  OutputFile file_;  // a hidden sibling
  bool committed_ = false;
};

// A small file in memory.
struct NamedFile {
  std::string name;
  std::string content;
};

// The content of the file of that name; null if there is none.
const std::string* content_of(std::span<const NamedFile> files, std::string_view name);

void write_file_durably(const std::filesystem::path& path, std::span<const std::byte> bytes);
void write_file_atomically(const std::filesystem::path& path, std::string_view bytes);

// The names in the folder have reached the disk when this returns.
void sync_folder(const std::filesystem::path& folder);
void rename_file(const std::filesystem::path& from, const std::filesystem::path& to);
// Two names of one file system trade their content in one step. False where the file system cannot.
bool exchange_files(const std::filesystem::path& one, const std::filesystem::path& other);

// Where a file of this name is written: through symbolic links, where they lead, though nothing be there yet. Throws
// InputError when there is no folder for it, or one that takes no files, or when something stands there that is no
// regular file: a folder, a device.
std::filesystem::path writable_target(const std::filesystem::path& path);

// ".<name><suffix>" in the same folder.
std::filesystem::path hidden_sibling(const std::filesystem::path& path, std::string_view suffix);

// The folder of a path as sync_folder takes it: "." for a bare name.
std::filesystem::path parent_of(const std::filesystem::path& path);

// The whole content, of at most `limit` bytes. Throws InputError when it cannot be read or is larger.
std::string read_file(const std::filesystem::path& path, std::uint64_t limit);

// Its first bytes, at most `count` of them. Throws InputError when it cannot be read.
std::string first_bytes(const std::filesystem::path& path, std::size_t count);

// The bytes of a file, read as they are touched. Throws InputError when it cannot be read.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  std::span<const std::byte> bytes_;
};

// Of bytes of a MappedFile, for what reads once from front to back: they will be wanted soon; they are wanted now, all
// of them; they need not stay in memory, and are read again if they are touched.
void expect_mapped(std::span<const std::byte> bytes);
void load_mapped(std::span<const std::byte> bytes);
void forget_mapped(std::span<const std::byte> bytes);
// The same as expect_mapped, of a whole file. Nothing happens if there is no such file.
void expect_file(const std::filesystem::path& path);

}  // namespace kvloom
