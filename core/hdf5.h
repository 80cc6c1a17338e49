// HDF5 behind handles that close themselves and one check that names the call that failed. HDF5 prints nothing.
// Safe to use from several threads on different files (Debian's library locks each call).
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/rectangle.h"
#include "kernels/dtype.h"

namespace kvloom::hdf5 {

using Id = std::int64_t;  // HDF5's hid_t, without its header

// Owns one identifier: `close` is the HDF5 function for its kind (H5Dclose, H5Sclose, ...).
class Handle {
 public:
  using Close = int (*)(Id);

  Handle() = default;
  Handle(Id id, Close close) : id_(id), close_(close) {}
  ~Handle();
  Handle(Handle&& other) noexcept;
  Handle& operator=(Handle&& other) noexcept;

  Id get() const { return id_; }
  // Gives the identifier up, for whoever closes it and looks at how that goes.
  Id release() { return std::exchange(id_, -1); }

 private:
  Id id_ = -1;
  Close close_ = nullptr;
};

// Who is at fault when a call fails: a file that we were given (InputError) or this run (Error).
enum class Fault : std::uint8_t { kInput, kRun };

// Returns what an HDF5 call returned, or throws "<where>: <call> failed: <HDF5's innermost reason>" if it is negative.
Id check(Id result, std::string_view call, std::string_view where, Fault fault);

// Stops HDF5 from printing its error stack in this thread. Whoever calls HDF5 itself calls this first.
void silence();

class File {
 public:
  // A new file in memory alone. `name` is for messages; memory grows by `step_bytes`.
  static File create_in_memory(std::string name, std::size_t step_bytes);
  // A new file on disk, in place of what was there. It is marked as being written until `close`: what an interrupted
  // run leaves opens neither here nor in other tools. Those of HDF5 1.10 and newer read it.
  static File create(const std::filesystem::path& path);
  // An existing file, to read. It is not locked, so read-only and network file systems will do. Throws InputError.
  static File open(const std::filesystem::path& path);

  Id id() const { return handle_.get(); }
  const std::string& name() const { return name_; }
  Fault fault() const { return fault_; }
  // The bytes that the file would have on disk.
  std::vector<std::byte> image() const;
  // Hands everything to the system, errors seen, and ends the file's use.
  void close();

 private:
  File(Handle handle, std::string name, Fault fault);
  Handle handle_;
  std::string name_;
  Fault fault_;
};

// Stores `data` ([shape], row-major) as the contiguous dataset `path`, groups on the way made as needed. HDF5 has no
// bf16 and few tools read its f16, so both are stored as u16 with the attribute "dtype" saying so.
void write_dataset(const File& file, const std::string& path, const Shape& shape, DType dtype, const void* data);

// The same in pieces: an empty dataset, then rectangles of it, `data` being [to.shape].
void create_dataset(const File& file, const std::string& path, const Shape& shape, DType dtype);
void write_rectangle(const File& file, const std::string& path, const Rectangle& to, DType dtype, const void* data);

// New attributes of the file itself. Text is UTF-8.
void write_attribute(const File& file, const std::string& name, const std::string& text);
void write_attribute(const File& file, const std::string& name, std::int64_t value);
void write_attribute(const File& file, const std::string& name, double value);

// Where a rectangle of a dataset goes: into `target`, a rectangle of a row-major buffer of shape `buffer_shape`.
struct Destination {
  Shape buffer_shape;
  Rectangle target;
  void* buffer;
};

// buffer[target] = dataset[from]; `from` and `target` have one shape, and the dataset must have `shape` and `dtype`.
void read_dataset(const File& file, const std::string& path, const Shape& shape, DType dtype, const Rectangle& from,
                  const Destination& to);

}  // namespace kvloom::hdf5
