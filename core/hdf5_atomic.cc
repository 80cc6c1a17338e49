#include "core/hdf5_atomic.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "core/file.h"
#include "kernels/error.h"

namespace kvloom::hdf5 {
namespace {

int open_new(const std::filesystem::path& path, const std::filesystem::path& partial) {
  const int descriptor = ::open(partial.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (descriptor < 0) reject_input("{} cannot be written: {}", path.string(), reason_of(errno));
  return descriptor;
}

}  // namespace

AtomicFile::Sibling::Sibling(const std::filesystem::path& path)
    : path_(hidden_sibling(path, ".partial")), descriptor_(open_new(path, path_)) {}

AtomicFile::Sibling::~Sibling() {
  ::close(descriptor_);
  if (!kept_) ::unlink(path_.c_str());
}

void AtomicFile::Sibling::sync() const {
  if (::fsync(descriptor_) != 0) fail("cannot sync {}: {}", path_.string(), reason_of(errno));
}

AtomicFile::AtomicFile(const std::filesystem::path& path)
    : path_(writable_target(path)),
      lock_(std::in_place, path_),
      sibling_(path_),
      file_(File::create(sibling_.path())) {}

void AtomicFile::commit() {
  file_.close();
  sibling_.sync();
  rename_file(sibling_.path(), path_);
  sibling_.keep();
  sync_folder(parent_of(path_));
  lock_.reset();
}

}  // namespace kvloom::hdf5
