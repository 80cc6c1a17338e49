// The bytes of a file, one after the other, as they were before someone compressed them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string_view>

namespace kvloom {

class ByteStream {
 public:
  virtual ~ByteStream() = default;
  // Fills `out` with the next bytes and returns how many; fewer than asked for only at the end. Throws InputError,
  // naming the file, where it cannot be read, is damaged or ends too early.
  virtual std::size_t read(std::span<char> out) = 0;
};

enum class Compression : std::uint8_t { kNone, kGzip, kZstd, kXz, kBzip2 };

// By the first bytes of a file.
Compression compression_of(std::string_view start);
std::string_view name_of(Compression compression);

// What `kvloom tokenize` opens: the file's bytes, decompressed. Parts that were compressed apart and joined are one
// text.
std::unique_ptr<ByteStream> open_decompressed(const std::filesystem::path& path, Compression compression);

}  // namespace kvloom
