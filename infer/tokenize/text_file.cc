#include "infer/tokenize/text_file.h"

#include <algorithm>
#include <array>
#include <system_error>
#include <utility>
#include <vector>

#include "core/file.h"
#include "infer/unicode.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kLook = std::size_t{64} << 10;

struct Foreign {
  std::string_view start;
  std::string_view what;  // "is ..."
};
constexpr const char* kUnpack = "an archive; unpack it and name the folder";
constexpr std::array kForeign = {
    Foreign{"PAR1",
            "a Parquet file; write its text column as JSON lines first, as with pandas: "
            "read_parquet(F).to_json(OUT, orient='records', lines=True)"},
    Foreign{"ARROW1", "an Arrow file; write its text column as JSON lines first"},
    Foreign{"PK\x03\x04", kUnpack},
    Foreign{"7z\xbc\xaf\x27\x1c", kUnpack},
    Foreign{"Rar!\x1a\x07", kUnpack},
    Foreign{"%PDF-", "a PDF; extract its text first, as with pdftotext"},
    Foreign{"\x89HDF\r\n\x1a\n", "an HDF5 file; right is text"},
    Foreign{"KVLTOKEN", "a token file already; right is text"},
    Foreign{"SQLite format 3", "a database; right is text"},
    Foreign{"\x89PNG", "an image; right is text"},
    Foreign{"\xff\xd8\xff", "an image; right is text"},
    Foreign{"\x7f"
            "ELF",
            "a program; right is text"},
};

void refuse_foreign(std::string_view start, const fs::path& path) {
  constexpr std::size_t kTarMark = 257;
  for (const Foreign& foreign : kForeign) {
    if (start.starts_with(foreign.start)) reject_input("'{}' is {}", path.string(), foreign.what);
  }
  if (start.size() > kTarMark + 5 && start.substr(kTarMark, 5) == "ustar") {
    reject_input("'{}' is {}", path.string(), kUnpack);
  }
}

TextEncoding encoding_of(std::string_view start, const fs::path& path) {
  if (start.starts_with(std::string_view("\xff\xfe\0\0", 4)) ||
      start.starts_with(std::string_view("\0\0\xfe\xff", 4))) {
    reject_input("'{}' is UTF-32; right are UTF-8 and UTF-16, as iconv -f UTF-32 -t UTF-8 makes it", path.string());
  }
  if (start.starts_with("\xff\xfe")) return TextEncoding::kUtf16Little;
  if (start.starts_with("\xfe\xff")) return TextEncoding::kUtf16Big;
  return TextEncoding::kUtf8;
}

bool names_json_lines(const fs::path& path) {
  fs::path name = path.filename();
  for (const char* suffix : {".gz", ".zst", ".zstd", ".xz", ".bz2"}) {
    if (name.extension() == suffix) {
      name = name.stem();
      break;
    }
  }
  return name.extension() == ".jsonl" || name.extension() == ".ndjson";
}

// UTF-16 behind its byte order mark as UTF-8.
class Utf16Text final : public ByteStream {
 public:
  Utf16Text(std::unique_ptr<ByteStream> bytes, TextEncoding encoding)
      : bytes_(std::move(bytes)), first_is_low_(encoding == TextEncoding::kUtf16Little) {
    next_unit();  // the byte order mark
  }

  std::size_t read(std::span<char> out) override {
    while (ready_.size() < out.size() && !at_end_) decode_character();
    const std::size_t count = std::min(out.size(), ready_.size());
    std::copy_n(ready_.begin(), count, out.begin());
    ready_.erase(0, count);
    return count;
  }

 private:
  static constexpr int kNone = -1;
  static bool is_high(int unit) { return unit >= 0xd800 && unit < 0xdc00; }
  static bool is_low(int unit) { return unit >= 0xdc00 && unit < 0xe000; }

  void decode_character() {
    const int unit = held_ != kNone ? std::exchange(held_, kNone) : next_unit();
    if (unit == kNone) {
      at_end_ = true;
    } else if (!is_high(unit)) {
      append(is_low(unit) ? 0xfffd : unit);
    } else if (const int low = next_unit(); is_low(low)) {
      append(0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00));
    } else {
      append(0xfffd);
      held_ = low;
    }
  }

  void append(int code) { append_character(ready_, static_cast<char32_t>(code)); }

  // Half a unit, which can only stand at the end, is no character.
  int next_unit() {
    if (have_ - at_ < 2) {
      const bool is_half = have_ - at_ == 1;
      at_ = 0;
      have_ = is_half ? 0 : bytes_->read(buffer_);
      if (is_half || have_ == 1) append(0xfffd);
      if (have_ == 1) have_ = 0;
      if (have_ == 0) return kNone;
    }
    const auto first = static_cast<unsigned char>(buffer_[at_]);
    const auto second = static_cast<unsigned char>(buffer_[at_ + 1]);
    at_ += 2;
    return first_is_low_ ? second << 8 | first : first << 8 | second;
  }

  std::unique_ptr<ByteStream> bytes_;
  bool first_is_low_;
  std::vector<char> buffer_ = std::vector<char>(std::size_t{64} << 10);
  std::size_t at_ = 0;
  std::size_t have_ = 0;
  int held_ = kNone;  // a unit that was read and is no low half
  std::string ready_;
  bool at_end_ = false;
};

// Counts the bytes, and the lines that are not blank.
void measure(TextFile& file) {
  const std::unique_ptr<ByteStream> text = open_text(file);
  std::vector<char> buffer(std::size_t{1} << 20);
  bool blank = true;
  file.bytes = 0;
  file.documents = file.form == TextForm::kPlain ? 1 : 0;
  while (const std::size_t count = text->read(buffer)) {
    file.bytes += count;
    if (file.form == TextForm::kPlain) continue;
    std::string_view rest(buffer.data(), count);
    while (!rest.empty()) {
      const std::size_t end = rest.find('\n');
      const std::string_view line = rest.substr(0, end);
      if (blank) blank = line.find_first_not_of(" \t\r") == line.npos;
      if (end == rest.npos) break;
      if (!std::exchange(blank, true)) ++file.documents;
      rest.remove_prefix(end + 1);
    }
  }
  if (!blank && file.form == TextForm::kJsonLines) ++file.documents;
}

}  // namespace

void refuse_nul(std::string_view text, const std::string& file) {
  if (text.find('\0') == text.npos) return;
  reject_input(
      "'{}' holds NUL bytes and is no text; leave it out with --glob, or if it is UTF-16 without a byte order "
      "mark convert it (iconv -f UTF-16LE -t UTF-8); --tokenizer bytes takes it as it is",
      file);
}

TextFile look_at(const fs::path& path, FormRule form, BytesRule bytes) {
  TextFile file{.path = path};
  const bool is_json_lines = form == FormRule::kJsonLines || (form == FormRule::kByName && names_json_lines(path));
  file.form = is_json_lines ? TextForm::kJsonLines : TextForm::kPlain;
  file.compression = compression_of(first_bytes(path, 16));
  std::string start(kLook, '\0');
  start.resize(open_decompressed(path, file.compression)->read(start));
  file.encoding = encoding_of(start, path);
  if (file.compression != Compression::kNone || bytes == BytesRule::kText) refuse_foreign(start, path);
  if (bytes == BytesRule::kText && file.encoding == TextEncoding::kUtf8) refuse_nul(start, path.string());
  if (file.form == TextForm::kPlain && file.compression == Compression::kNone && file.encoding == TextEncoding::kUtf8) {
    std::error_code error;
    file.bytes = fs::file_size(path, error);
    if (error) reject_input("'{}': cannot be read: {}", path.string(), error.message());
  } else {
    measure(file);
  }
  return file;
}

std::unique_ptr<ByteStream> open_text(const TextFile& file) {
  std::unique_ptr<ByteStream> bytes = open_decompressed(file.path, file.compression);
  if (file.encoding == TextEncoding::kUtf8) return bytes;
  return std::make_unique<Utf16Text>(std::move(bytes), file.encoding);
}

}  // namespace kvloom
