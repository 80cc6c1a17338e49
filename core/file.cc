#include "core/file.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <system_error>
#include <utility>

#include "core/lock_file.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

namespace fs = std::filesystem;

// Closes when it goes away; errors of closing a file that was only read mean nothing.
class Descriptor {
 public:
  explicit Descriptor(int value) : value_(value) {}
  ~Descriptor() {
    if (value_ >= 0) ::close(value_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return value_; }

 private:
  int value_;
};

int open_for_writing(const fs::path& path) {
  const int descriptor = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (descriptor < 0) fail("cannot create {}: {}", path.string(), reason_of(errno));
  return descriptor;
}

int open_for_reading(const fs::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) reject_input("cannot open {}: {}", path.string(), reason_of(errno));
  return descriptor;
}

std::uint64_t size_of_regular_file(int descriptor, const fs::path& path) {
  struct stat status {};
  if (::fstat(descriptor, &status) != 0) reject_input("cannot read {}: {}", path.string(), reason_of(errno));
  if (!S_ISREG(status.st_mode)) reject_input("cannot read {}: it is not a regular file", path.string());
  return static_cast<std::uint64_t>(status.st_size);
}

// What madvise takes: whole pages. Advice may be ignored, and so may its failure.
void advise(std::span<const std::byte> bytes, int advice) {
  static const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const std::uintptr_t begin = reinterpret_cast<std::uintptr_t>(bytes.data()) / page * page;
  const std::uintptr_t end = reinterpret_cast<std::uintptr_t>(bytes.data()) + bytes.size();
  if (!bytes.empty()) ::madvise(reinterpret_cast<void*>(begin), end - begin, advice);
}

}  // namespace

std::string reason_of(int error) { return std::generic_category().message(error); }

OutputFile::OutputFile(fs::path path) : path_(std::move(path)), descriptor_(open_for_writing(path_)) {}

OutputFile::~OutputFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void OutputFile::write(std::span<const std::byte> bytes) {
  constexpr std::size_t kLargestWrite = std::size_t{16} << 20;
  std::size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t moved = ::write(descriptor_, bytes.data() + done, std::min(bytes.size() - done, kLargestWrite));
    if (moved < 0 && errno == EINTR) continue;
    if (moved <= 0) {
      fail("cannot write {}: {} ({} bytes wanted after the first {})", path_.string(),
           moved == 0 ? "nothing was taken" : reason_of(errno), bytes.size() - done, written_);
    }
    done += static_cast<std::size_t>(moved);
    // The disk starts on it now, so that the sync at the end has little left to wait for.
    ::sync_file_range(descriptor_, static_cast<off64_t>(written_), moved, SYNC_FILE_RANGE_WRITE);
    written_ += static_cast<std::uint64_t>(moved);
  }
}

void OutputFile::sync_and_close() {
  if (::fsync(descriptor_) != 0) fail("cannot sync {} ({} bytes): {}", path_.string(), written_, reason_of(errno));
  if (::close(std::exchange(descriptor_, -1)) != 0) {
    fail("cannot close {} ({} bytes): {}", path_.string(), written_, reason_of(errno));
  }
}

AtomicFile::AtomicFile(const fs::path& path)
    : path_(writable_target(path)),
      lock_(std::make_unique<TargetLock>(path_)),
      file_(hidden_sibling(path_, ".partial")) {}

AtomicFile::~AtomicFile() {
  if (!committed_) ::unlink(file_.path().c_str());
}

void AtomicFile::commit() {
  file_.sync_and_close();
  rename_file(file_.path(), path_);
  committed_ = true;
  sync_folder(parent_of(path_));
}

const std::string* content_of(std::span<const NamedFile> files, std::string_view name) {
  const auto file = std::ranges::find(files, name, &NamedFile::name);
  return file == files.end() ? nullptr : &file->content;
}

void write_file_durably(const fs::path& path, std::span<const std::byte> bytes) {
  OutputFile file(path);
  file.write(bytes);
  file.sync_and_close();
}

void write_file_atomically(const fs::path& path, std::string_view bytes) {
  AtomicFile file(path);
  file.write(std::as_bytes(std::span(bytes)));
  file.commit();
}

void sync_folder(const fs::path& folder) {
  const Descriptor descriptor(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (descriptor.get() < 0) fail("cannot open folder {}: {}", folder.string(), reason_of(errno));
  // Some file systems keep names safe by themselves and refuse to sync folders.
  if (::fsync(descriptor.get()) != 0 && errno != EINVAL) {
    fail("cannot sync folder {}: {}", folder.string(), reason_of(errno));
  }
}

void rename_file(const fs::path& from, const fs::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) {
    fail("cannot rename {} to {}: {}", from.string(), to.string(), reason_of(errno));
  }
}

bool exchange_files(const fs::path& one, const fs::path& other) {
  if (::renameat2(AT_FDCWD, one.c_str(), AT_FDCWD, other.c_str(), RENAME_EXCHANGE) == 0) return true;
  if (errno == EINVAL || errno == ENOSYS) return false;
  fail("cannot exchange {} and {}: {}", one.string(), other.string(), reason_of(errno));
}

fs::path parent_of(const fs::path& path) {
  const fs::path parent = path.parent_path();
  return parent.empty() ? fs::path(".") : parent;
}

fs::path writable_target(const fs::path& path) {
  std::error_code error;
  const auto reject = [&](const std::string& reason) {
    reject_input("{} cannot be written: {}", path.string(), reason);
  };
  // The status is that of what links lead to, if anything is there.
  const fs::file_status status = fs::status(path, error);
  if (!fs::status_known(status)) reject(error.message());
  if (fs::is_directory(status)) reject("it is a folder");
  if (fs::exists(status) && !fs::is_regular_file(status)) reject("it is not a regular file");
  constexpr int kMostLinks = 40;  // as in Linux
  fs::path target = path;
  for (int i = 0; i < kMostLinks && fs::is_symlink(target, error); ++i) {
    target = parent_of(target) / fs::read_symlink(target, error);
  }
  const fs::path folder = parent_of(target);
  if (!fs::is_directory(folder, error)) reject(fmt::format("there is no folder {}", folder.string()));
  // A sibling is written and takes the file's place: what the file itself allows does not count.
  if (::faccessat(AT_FDCWD, folder.c_str(), W_OK | X_OK, AT_EACCESS) != 0) {
    reject(fmt::format("the folder {} takes no files: {}", folder.string(), reason_of(errno)));
  }
  return target;
}

fs::path hidden_sibling(const fs::path& path, std::string_view suffix) {
  return path.parent_path() / fmt::format(".{}{}", path.filename().string(), suffix);
}

std::string read_file(const fs::path& path, std::uint64_t limit) {
  const Descriptor descriptor(open_for_reading(path));
  const std::uint64_t size = size_of_regular_file(descriptor.get(), path);
  if (size > limit) reject_input("{} has {} bytes; at most {} make sense", path.string(), size, limit);
  std::string content(size, '\0');
  std::size_t done = 0;
  while (done < content.size()) {
    const ssize_t moved = ::read(descriptor.get(), content.data() + done, content.size() - done);
    if (moved < 0 && errno == EINTR) continue;
    if (moved < 0) reject_input("cannot read {}: {}", path.string(), reason_of(errno));
    if (moved == 0) reject_input("{} ended after {} of {} bytes", path.string(), done, size);
    done += static_cast<std::size_t>(moved);
  }
  return content;
}

std::string first_bytes(const fs::path& path, std::size_t count) {
  const Descriptor descriptor(open_for_reading(path));
  std::string bytes(count, '\0');
  const ssize_t moved = ::pread(descriptor.get(), bytes.data(), count, 0);
  if (moved < 0) reject_input("cannot read {}: {}", path.string(), reason_of(errno));
  bytes.resize(static_cast<std::size_t>(moved));
  return bytes;
}

MappedFile::MappedFile(const fs::path& path) {
  const Descriptor descriptor(open_for_reading(path));
  const std::uint64_t size = size_of_regular_file(descriptor.get(), path);
  if (size == 0) return;
  void* start = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor.get(), 0);
  if (start == MAP_FAILED) reject_input("cannot map {} ({} bytes): {}", path.string(), size, reason_of(errno));
  bytes_ = {static_cast<const std::byte*>(start), size};
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

void expect_mapped(std::span<const std::byte> bytes) { advise(bytes, MADV_WILLNEED); }

void load_mapped(std::span<const std::byte> bytes) {
#ifdef MADV_POPULATE_READ
  advise(bytes, MADV_POPULATE_READ);
#else
  expect_mapped(bytes);
#endif
}

void expect_file(const fs::path& path) {
  const Descriptor descriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (descriptor.get() >= 0) ::posix_fadvise(descriptor.get(), 0, 0, POSIX_FADV_WILLNEED);
}

void forget_mapped(std::span<const std::byte> bytes) { advise(bytes, MADV_DONTNEED); }

MappedFile::MappedFile(MappedFile&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(bytes_, other.bytes_);
  return *this;
}

}  // namespace kvloom
