// Tokens on disk: an HDF5 file that any HDF5 tool reads, with a header of our own in its user block, by which we map
// the datasets without HDF5 and check every byte that we use.
//   tokens, validation/tokens        u16 (vocab <= 65536) or u32, contiguous
//   documents, validation/documents  u64, the token at which each document starts
//   checksums                        u64, XXH3-64 of each MiB of tokens, then of each MiB of validation/tokens
//   tokenizer                        u8, the tokenizer's serialised model
//   provenance                       u8, one JSON object a line for each input file
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/checkpoint_verify.h"
#include "core/file.h"
#include "core/lock_file.h"
#include "kernels/dtype.h"
#include "proto/token_file.pb.h"

namespace kvloom {

enum class Part : std::uint8_t { kTraining, kValidation };

class TokenFile {
 public:
  // Throws InputError naming the file when it is missing, foreign, truncated or damaged. Blocks of tokens are checked
  // when they are first read.
  explicit TokenFile(const std::filesystem::path& path);

  std::int64_t count(Part part) const;
  std::int64_t documents(Part part) const;
  std::int64_t vocab() const { return header_.vocab(); }
  // The smallest vocabulary that has every token of the file: of files that do not say, vocab().
  std::int64_t used_vocab() const {
    return header_.has_largest_token() ? std::int64_t{header_.largest_token()} + 1 : vocab();
  }
  // Bytes of text that the part's tokens stand for.
  std::uint64_t text_bytes(Part part) const;
  // Equal for files with equal tokens and tokenizers.
  std::string identity() const;
  std::string tokenizer_kind() const { return header_.tokenizer_kind(); }
  std::string tokenizer_model() const;
  std::string provenance() const;
  const proto::TokenFileHeader& header() const { return header_; }

  // out = tokens [begin, begin + out.size()) of the part. Safe to call from several threads. Throws InputError naming
  // file and block when a checksum is wrong.
  void read(Part part, std::int64_t begin, std::span<std::int32_t> out) const;

  // Checks every block now, with `threads` threads, at least one. Throws InputError naming the first damaged one.
  // `progress`, in bytes of tokens, comes from any of the threads, one at a time.
  void verify_all(int threads, const std::function<void(const VerifyProgress&)>& progress = {}) const;

 private:
  std::span<const std::byte> dataset(const std::string& name) const;
  std::span<const std::byte> tokens(Part part) const;
  void check_blocks(Part part, std::uint64_t first_byte, std::uint64_t last_byte) const;

  std::filesystem::path path_;
  MappedFile file_;
  proto::TokenFileHeader header_;
  DType dtype_ = DType::kU16;
  std::array<std::span<const std::byte>, 2> tokens_;
  std::span<const std::byte> checksums_;
  std::array<std::size_t, 2> first_block_{};
  mutable std::vector<std::atomic<bool>> checked_;  // by block
};

struct TokenFileDescription {
  std::int64_t vocab;
  std::string tokenizer_kind;
  std::string tokenizer_model;
  std::string created_by;
};

// Writes a token file of any size in bounded memory: tokens go to files beside it first, and the whole appears under
// its name only with `finish`. Throws Error when the disk is full, naming the file; nothing is left behind. One process
// at a time writes a file: the constructor throws as TargetLock does.
class TokenFileWriter {
 public:
  TokenFileWriter(const std::filesystem::path& path, TokenFileDescription description);
  ~TokenFileWriter();
  TokenFileWriter(const TokenFileWriter&) = delete;
  TokenFileWriter& operator=(const TokenFileWriter&) = delete;

  // A new document starts with the next token.
  void begin_document(Part part);
  void append(Part part, std::span<const std::int32_t> tokens, std::uint64_t text_bytes);
  void add_provenance(const std::string& json_line) { provenance_ += json_line + '\n'; }

  std::uint64_t count(Part part) const { return parts_[static_cast<std::size_t>(part)].count; }

  // Throws InputError when there are no training tokens.
  void finish();

 private:
  // A part's tokens so far, in a file that goes when this goes.
  struct PartState {
    PartState() = default;
    ~PartState();
    PartState(const PartState&) = delete;
    PartState& operator=(const PartState&) = delete;

    std::filesystem::path path;
    std::unique_ptr<OutputFile> file;
    std::uint64_t count = 0;
    std::uint64_t text_bytes = 0;
    std::vector<std::uint64_t> documents;
    std::vector<std::byte> pending;  // of the block that is not full yet
    std::vector<std::uint64_t> checksums;
  };
  void flush_block(PartState& part);
  void assemble(const std::filesystem::path& partial);

  std::filesystem::path path_;
  TargetLock lock_;
  TokenFileDescription description_;
  DType dtype_;
  std::array<PartState, 2> parts_;
  std::int32_t largest_token_ = 0;
  std::string provenance_;
};

}  // namespace kvloom
