// Hugging Face's safetensors: eight bytes of header length, a JSON header, then the tensors' bytes without gaps. The
// rules are those of the reference implementation; a file that it would refuse is refused here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/file.h"
#include "core/tensor.h"
#include "kernels/dtype.h"

namespace kvloom {

struct SafetensorsEntry {
  std::string name;
  std::string stored_dtype;    // as the file has it: "F32", "BF16", "F8_E4M3", ...
  std::optional<DType> dtype;  // nothing where kvloom has no such dtype
  Shape shape;
  std::uint64_t begin = 0;  // of its bytes, counted from the first tensor's
  std::uint64_t bytes = 0;
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> tensors;        // in the order of their bytes
  std::map<std::string, std::string> metadata;  // "__metadata__"
};

// Throws InputError, naming `where` and the tensor, unless the header is such JSON, every shape fits its bytes, and the
// tensors fill `data_bytes` without gap or overlap.
SafetensorsHeader parse_safetensors_header(std::string_view json, std::uint64_t data_bytes, const std::string& where);

// A file open for reading; bytes come from the disk as they are touched.
class SafetensorsFile {
 public:
  // Throws InputError when it cannot be read, is truncated, longer than its header says, or damaged.
  explicit SafetensorsFile(std::filesystem::path path);

  const std::filesystem::path& path() const { return path_; }
  std::span<const SafetensorsEntry> tensors() const { return header_.tensors; }
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }

  bool has(const std::string& name) const { return index_.contains(name); }
  // Throws InputError when there is no such tensor.
  const SafetensorsEntry& tensor(const std::string& name) const;

  // [shape], row-major; not necessarily aligned to its element size. Valid while this file is.
  std::span<const std::byte> data(const SafetensorsEntry& entry) const;
  // At most `count` bytes of the file that follow `part`, which lies in it.
  std::span<const std::byte> behind(std::span<const std::byte> part, std::size_t count) const;

 private:
  std::filesystem::path path_;
  MappedFile content_;
  std::uint64_t data_begin_ = 0;
  SafetensorsHeader header_;
  std::unordered_map<std::string, std::size_t> index_;
};

struct SafetensorsTensor {
  std::string name;
  Shape shape;
  DType dtype = DType::kF32;
};

// Streams a file out; it appears under its name with `finish`. Throws Error when the disk is full.
class SafetensorsWriter {
 public:
  // Throws InputError for a name given twice or a shape that makes no sense.
  SafetensorsWriter(std::filesystem::path path, std::vector<SafetensorsTensor> tensors,
                    const std::map<std::string, std::string>& metadata = {{"format", "pt"}});

  // The next bytes of `name`, in as many pieces as suit. Tensors come in the order that was declared.
  void append(const std::string& name, std::span<const std::byte> bytes);
  void finish();

 private:
  void skip_finished();

  std::vector<SafetensorsTensor> tensors_;
  AtomicFile file_;
  std::size_t next_ = 0;
  std::uint64_t wanted_ = 0;  // bytes that tensors_[next_] still wants
};

}  // namespace kvloom
