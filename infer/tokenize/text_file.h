// A file that `kvloom tokenize` reads: what form its text has, and the text as UTF-8.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include "infer/tokenize/byte_stream.h"

namespace kvloom {

enum class TextForm : std::uint8_t {
  kPlain,      // one document
  kJsonLines,  // one JSON object a line, each a document
};
enum class TextEncoding : std::uint8_t { kUtf8, kUtf16Little, kUtf16Big };

// What forms files are taken to have.
enum class FormRule : std::uint8_t {
  kByName,     // .jsonl and .ndjson, compressed or not, are JSON lines
  kPlain,      // all are text
  kJsonLines,  // all are JSON lines
};

// Whether bytes may stand there that no text has.
enum class BytesRule : std::uint8_t { kText, kAnyBytes };

struct TextFile {
  std::filesystem::path path;
  TextForm form = TextForm::kPlain;
  Compression compression = Compression::kNone;
  TextEncoding encoding = TextEncoding::kUtf8;
  std::uint64_t bytes = 0;      // of the text as UTF-8; of JSON lines with all that stands around it
  std::uint64_t documents = 1;  // of JSON lines, those that are not blank
};

// Looks at the first bytes of the file, and where its size as text is not that on the disk, or lines must be counted,
// at all of it. Throws InputError for a file that cannot be read and, unless any bytes are taken, for what is no text,
// by name and with what to do: archives, Parquet, PDF, NUL bytes, ...
TextFile look_at(const std::filesystem::path& path, FormRule form, BytesRule bytes);

// Its text as UTF-8: decompressed and, where a byte order mark says UTF-16, converted, with U+FFFD for what is none.
std::unique_ptr<ByteStream> open_text(const TextFile& file);

// Throws InputError if there is a NUL byte in the text, which is of that file.
void refuse_nul(std::string_view text, const std::string& file);

}  // namespace kvloom
