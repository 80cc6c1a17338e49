#include "infer/tokenize/byte_stream.h"

#include <bzlib.h>
#include <lzma.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "kernels/error.h"

namespace kvloom {
namespace {

namespace fs = std::filesystem;

class PlainFile final : public ByteStream {
 public:
  explicit PlainFile(const fs::path& path) : path_(path), file_(path, std::ios::binary) {
    if (!file_) reject_input("'{}': cannot be opened", path_.string());
  }
  std::size_t read(std::span<char> out) override {
    file_.read(out.data(), static_cast<std::streamsize>(out.size()));
    if (file_.bad()) reject_input("'{}': reading failed", path_.string());
    return static_cast<std::size_t>(file_.gcount());
  }

 private:
  fs::path path_;
  std::ifstream file_;
};

// One call of a library: how much it took and gave, and whether a whole part, of which files may hold several, ended.
struct Step {
  std::size_t taken = 0;
  std::size_t given = 0;
  bool ended = false;
};

unsigned short_size(std::size_t size) {
  return static_cast<unsigned>(std::min<std::size_t>(size, std::numeric_limits<unsigned>::max()));
}

// Codecs: `step` decompresses what it can, `restart` awaits another part. A fault is a text.
class Gzip {
 public:
  Gzip() { check(inflateInit2(&stream_, kGzipOnly)); }
  ~Gzip() { inflateEnd(&stream_); }
  Gzip(const Gzip&) = delete;
  Gzip& operator=(const Gzip&) = delete;

  Step step(std::span<const char> in, std::span<char> out) {
    stream_.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(in.data()));
    stream_.avail_in = short_size(in.size());
    stream_.next_out = reinterpret_cast<Bytef*>(out.data());
    stream_.avail_out = short_size(out.size());
    const int status = inflate(&stream_, Z_NO_FLUSH);
    if (status != Z_BUF_ERROR) check(status);
    return {in.size() - stream_.avail_in, out.size() - stream_.avail_out, status == Z_STREAM_END};
  }
  void restart() { check(inflateReset(&stream_)); }

 private:
  static constexpr int kGzipOnly = 15 + 16;
  static void check(int status) {
    if (status != Z_OK && status != Z_STREAM_END) throw std::runtime_error(zError(status));
  }
  z_stream stream_{};
};

class Zstd {
 public:
  Zstd() : stream_(ZSTD_createDStream()) {
    if (stream_ == nullptr) throw std::runtime_error("out of memory");
    // What `zstd --long` makes.
    ZSTD_DCtx_setParameter(stream_, ZSTD_d_windowLogMax, 31);
  }
  ~Zstd() { ZSTD_freeDStream(stream_); }
  Zstd(const Zstd&) = delete;
  Zstd& operator=(const Zstd&) = delete;

  Step step(std::span<const char> in, std::span<char> out) {
    ZSTD_inBuffer from{in.data(), in.size(), 0};
    ZSTD_outBuffer to{out.data(), out.size(), 0};
    const std::size_t status = ZSTD_decompressStream(stream_, &to, &from);
    if (ZSTD_isError(status) != 0) throw std::runtime_error(ZSTD_getErrorName(status));
    return {from.pos, to.pos, status == 0};
  }
  void restart() {}

 private:
  ZSTD_DStream* stream_;
};

class Xz {
 public:
  Xz() { restart(); }
  ~Xz() { lzma_end(&stream_); }
  Xz(const Xz&) = delete;
  Xz& operator=(const Xz&) = delete;

  Step step(std::span<const char> in, std::span<char> out) {
    stream_.next_in = reinterpret_cast<const std::uint8_t*>(in.data());
    stream_.avail_in = in.size();
    stream_.next_out = reinterpret_cast<std::uint8_t*>(out.data());
    stream_.avail_out = out.size();
    const lzma_ret status = lzma_code(&stream_, LZMA_RUN);
    if (status != LZMA_OK && status != LZMA_STREAM_END && status != LZMA_BUF_ERROR) {
      throw std::runtime_error(status == LZMA_MEM_ERROR ? "out of memory" : "damaged");
    }
    return {in.size() - stream_.avail_in, out.size() - stream_.avail_out, status == LZMA_STREAM_END};
  }
  void restart() {
    if (lzma_stream_decoder(&stream_, std::numeric_limits<std::uint64_t>::max(), 0) != LZMA_OK) {
      throw std::runtime_error("out of memory");
    }
  }

 private:
  lzma_stream stream_ = LZMA_STREAM_INIT;
};

class Bzip2 {
 public:
  Bzip2() { restart(); }
  ~Bzip2() { BZ2_bzDecompressEnd(&stream_); }
  Bzip2(const Bzip2&) = delete;
  Bzip2& operator=(const Bzip2&) = delete;

  Step step(std::span<const char> in, std::span<char> out) {
    stream_.next_in = const_cast<char*>(in.data());
    stream_.avail_in = short_size(in.size());
    stream_.next_out = out.data();
    stream_.avail_out = short_size(out.size());
    const int status = BZ2_bzDecompress(&stream_);
    if (status != BZ_OK && status != BZ_STREAM_END) {
      throw std::runtime_error(status == BZ_MEM_ERROR ? "out of memory" : "damaged");
    }
    return {in.size() - stream_.avail_in, out.size() - stream_.avail_out, status == BZ_STREAM_END};
  }
  void restart() {
    BZ2_bzDecompressEnd(&stream_);
    stream_ = {};
    if (BZ2_bzDecompressInit(&stream_, 0, 0) != BZ_OK) throw std::runtime_error("out of memory");
  }

 private:
  bz_stream stream_{};
};

template <typename Codec>
class Decompressed final : public ByteStream {
 public:
  Decompressed(const fs::path& path, Compression compression)
      : path_(path), name_(name_of(compression)), file_(path), buffer_(kBuffer) {}

  std::size_t read(std::span<char> out) override {
    std::size_t given = 0;
    while (given < out.size()) {
      if (waiting_.empty()) waiting_ = std::span(buffer_).first(file_.read(buffer_));
      // At the end a library may still hold text that found no room.
      const bool at_end = waiting_.empty();
      if (at_end && between_parts_) break;
      const Step step = advance(out.subspan(given));
      given += step.given;
      if (at_end && step.given == 0 && !step.ended) {
        reject_input("'{}': ends too early: the {} file is incomplete", path_.string(), name_);
      }
    }
    return given;
  }

 private:
  static constexpr std::size_t kBuffer = std::size_t{256} << 10;

  Step advance(std::span<char> out) {
    try {
      if (between_parts_) codec_.restart();
      const Step step = codec_.step(waiting_, out);
      waiting_ = waiting_.subspan(step.taken);
      between_parts_ = step.ended;
      return step;
    } catch (const std::runtime_error& error) {
      reject_input("'{}': cannot be decompressed as {}: {}", path_.string(), name_, error.what());
    }
  }

  fs::path path_;
  std::string_view name_;
  PlainFile file_;
  std::vector<char> buffer_;
  std::span<char> waiting_;
  Codec codec_;
  bool between_parts_ = true;
};

}  // namespace

Compression compression_of(std::string_view start) {
  if (start.starts_with("\x1f\x8b")) return Compression::kGzip;
  if (start.starts_with("\x28\xb5\x2f\xfd")) return Compression::kZstd;
  if (start.starts_with(std::string_view("\xfd\x37zXZ\0", 6))) return Compression::kXz;
  const bool is_bzip2 =
      start.size() >= 10 && start.starts_with("BZh") && start[3] >= '1' && start[3] <= '9' &&
      (start.substr(4, 6) == "\x31\x41\x59\x26\x53\x59" || start.substr(4, 6) == "\x17\x72\x45\x38\x50\x90");
  return is_bzip2 ? Compression::kBzip2 : Compression::kNone;
}

std::string_view name_of(Compression compression) {
  switch (compression) {
    case Compression::kGzip:
      return "gzip";
    case Compression::kZstd:
      return "zstd";
    case Compression::kXz:
      return "xz";
    case Compression::kBzip2:
      return "bzip2";
    case Compression::kNone:
      break;
  }
  return "none";
}

std::unique_ptr<ByteStream> open_decompressed(const fs::path& path, Compression compression) {
  switch (compression) {
    case Compression::kGzip:
      return std::make_unique<Decompressed<Gzip>>(path, compression);
    case Compression::kZstd:
      return std::make_unique<Decompressed<Zstd>>(path, compression);
    case Compression::kXz:
      return std::make_unique<Decompressed<Xz>>(path, compression);
    case Compression::kBzip2:
      return std::make_unique<Decompressed<Bzip2>>(path, compression);
    case Compression::kNone:
      break;
  }
  return std::make_unique<PlainFile>(path);
}

}  // namespace kvloom
