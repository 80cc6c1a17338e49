// HDF5 files on disk that are whole or not there, as core/file.h has it for plain bytes.
#pragma once

#include <filesystem>
#include <optional>

#include "core/hdf5.h"
#include "core/lock_file.h"

namespace kvloom::hdf5 {

// A new HDF5 file, written piece by piece, that appears under its name only with `commit`, replacing what was there in
// one step. Until then, and for good if it goes away uncommitted, the name keeps its old content; a process that is
// killed leaves at most a hidden sibling, which does not open unless it is whole, and which the next file of this name
// replaces.
class AtomicFile {
 public:
  // Throws InputError when no file can be made there (writable_target in core/file.h), or another process is making it.
  explicit AtomicFile(const std::filesystem::path& path);

  const File& file() const { return file_; }
  // Everything has reached the disk and stands under the name when this returns. Throws Error.
  void commit();

 private:
  // A descriptor of the hidden sibling, by which it is synced.
  class Sibling {
   public:
    explicit Sibling(const std::filesystem::path& path);
    ~Sibling();
    Sibling(const Sibling&) = delete;
    Sibling& operator=(const Sibling&) = delete;

    const std::filesystem::path& path() const { return path_; }
    void sync() const;
    void keep() { kept_ = true; }

   private:
    std::filesystem::path path_;
    int descriptor_;
    bool kept_ = false;
  };

  std::filesystem::path path_;
  std::optional<TargetLock> lock_;  // until it is committed
  Sibling sibling_;
  File file_;
};

}  // namespace kvloom::hdf5
