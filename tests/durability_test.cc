// What the disk holds when the power fails: a file's bytes reach it before its name does, and its name before anyone is
// told that it is there. Calls of the operating system are traced: this program's own take the C library's place.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "core/checkpoint_folder.h"
#include "core/checkpoint_writer.h"
#include "core/file.h"
#include "core/hdf5_atomic.h"
#include "core/safetensors.h"
#include "data/token_file.h"
#include "tests/support/random.h"
#include "tests/support/temporary_folder.h"

namespace {

namespace fs = std::filesystem;

enum class Call { kWrite, kSync, kRename };

struct Traced {
  Call call;
  std::string path;
  std::string to = {};  // kRename
};

struct Trace {
  std::mutex mutex;
  bool is_on = false;
  std::vector<Traced> calls;

  static Trace& the() {
    static Trace trace;
    return trace;
  }
  void add(Traced call) {
    const std::lock_guard lock(mutex);
    if (is_on) calls.push_back(std::move(call));
  }
};

std::string path_of(int descriptor) {
  std::string path(4096, '\0');
  const ssize_t length = ::readlink(("/proc/self/fd/" + std::to_string(descriptor)).c_str(), path.data(), path.size());
  path.resize(length < 0 ? 0 : static_cast<std::size_t>(length));
  return path;
}

}  // namespace

extern "C" {
ssize_t write(int descriptor, const void* bytes, size_t count) {
  Trace::the().add({Call::kWrite, path_of(descriptor)});
  return ::syscall(SYS_write, descriptor, bytes, count);
}
ssize_t pwrite(int descriptor, const void* bytes, size_t count, off_t offset) {
  Trace::the().add({Call::kWrite, path_of(descriptor)});
  return ::syscall(SYS_pwrite64, descriptor, bytes, count, offset);
}
ssize_t pwrite64(int descriptor, const void* bytes, size_t count, off64_t offset) {
  Trace::the().add({Call::kWrite, path_of(descriptor)});
  return ::syscall(SYS_pwrite64, descriptor, bytes, count, offset);
}
int fsync(int descriptor) {
  Trace::the().add({Call::kSync, path_of(descriptor)});
  return static_cast<int>(::syscall(SYS_fsync, descriptor));
}
int rename(const char* from, const char* to) noexcept {
  Trace::the().add({Call::kRename, from, to});
  return static_cast<int>(::syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0));
}
int renameat2(int, const char* from, int, const char* to, unsigned int flags) noexcept {
  Trace::the().add({Call::kRename, from, to});
  return static_cast<int>(::syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, flags));
}
}

namespace kvloom {
namespace {

std::vector<Traced> traced(const auto& body) {
  Trace& trace = Trace::the();
  {
    const std::lock_guard lock(trace.mutex);
    trace.calls.clear();
    trace.is_on = true;
  }
  body();
  const std::lock_guard lock(trace.mutex);
  trace.is_on = false;
  return trace.calls;
}

// The last call of a kind on the path, or -1.
std::ptrdiff_t last(const std::vector<Traced>& calls, Call call, const fs::path& path) {
  for (std::ptrdiff_t i = std::ssize(calls) - 1; i >= 0; --i) {
    const Traced& one = calls[static_cast<std::size_t>(i)];
    if (one.call == call && one.path == path.string()) return i;
  }
  return -1;
}

// `path` got its name by one rename, when all its bytes were on the disk, and then its folder was.
void expect_durable(const std::vector<Traced>& calls, const fs::path& path) {
  SCOPED_TRACE(path);
  const auto is_naming = [&](const Traced& one) { return one.call == Call::kRename && one.to == path.string(); };
  const auto naming = std::ranges::find_if(calls, is_naming);
  ASSERT_NE(naming, calls.end()) << "it was not made beside and renamed";
  ASSERT_EQ(std::ranges::count_if(calls, is_naming), 1);
  const std::ptrdiff_t named = naming - calls.begin();
  const fs::path before = naming->path;
  EXPECT_EQ(before.parent_path(), path.parent_path());
  std::vector<fs::path> parts = {before};
  if (fs::is_directory(path)) {
    for (const auto& file : fs::recursive_directory_iterator(path)) {
      parts.push_back(before / fs::relative(file.path(), path));
    }
  }
  for (const fs::path& part : parts) {
    const std::ptrdiff_t synced = last(calls, Call::kSync, part);
    EXPECT_GE(synced, 0) << part << " was never synced";
    EXPECT_LT(synced, named) << part << " was synced after it had its name";
    EXPECT_LT(last(calls, Call::kWrite, part), synced) << part << " was written to after it was synced";
  }
  EXPECT_GT(last(calls, Call::kSync, path.parent_path()), named) << "its folder was not synced after it";
}

TEST(Durability, OfAFileThatIsWrittenAtOnce) {
  const TemporaryFolder folder;
  for (int round = 0; round < 2; ++round) {  // new, then in the place of another
    expect_durable(traced([&] { write_file_atomically(folder / "file", "content"); }), folder / "file");
    EXPECT_EQ(read_bytes(folder / "file"), "content");
  }
}

TEST(Durability, OfAnHdf5File) {
  const TemporaryFolder folder;
  const auto calls = traced([&] {
    hdf5::AtomicFile file(folder / "file.h5");
    file.commit();
  });
  expect_durable(calls, folder / "file.h5");
}

TEST(Durability, OfATokenFile) {
  const TemporaryFolder folder;
  const std::vector<std::int32_t> tokens(1000, 7);
  const auto calls = traced([&] {
    TokenFileWriter writer(folder / "tokens.h5", {.vocab = 257, .tokenizer_kind = "bytes", .created_by = "test"});
    writer.begin_document(Part::kTraining);
    writer.append(Part::kTraining, tokens, tokens.size());
    writer.finish();
  });
  expect_durable(calls, folder / "tokens.h5");
}

TEST(Durability, OfACheckpointAndOfOneThatTakesItsPlace) {
  test::Random random;
  const TemporaryFolder folder;
  const fs::path path = folder / "step-00000007";
  for (int round = 0; round < 2; ++round) {
    const std::vector<float> values = random.normals(600);
    const auto calls = traced([&] {
      CheckpointWriter writer(path);
      std::vector<proto::ManifestPart> parts;
      for (int part = 0; part < 2; ++part) {
        const TensorSlice slice{.name = "weight",
                                .global_shape = {600},
                                .dtype = DType::kF32,
                                .offset = {300 * part},
                                .shape = {300},
                                .data = values.data() + 300 * part};
        parts.push_back(write_checkpoint_part(path, part, std::span(&slice, 1), 400));
      }
      proto::Manifest manifest;
      manifest.mutable_training()->set_step(7);
      writer.commit(manifest, parts);
    });
    expect_durable(calls, path);
    EXPECT_GE(std::ranges::distance(fs::directory_iterator(path)), 3);
  }
}

TEST(Durability, OfTheMarkOfTheBestCheckpoint) {
  const TemporaryFolder folder;
  expect_durable(traced([&] { mark_best_checkpoint(folder.path(), 7); }), folder / "best");
}

}  // namespace
}  // namespace kvloom
