// Texts to tokens in a token file: encoded in parallel, written in order.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/token_file.h"
#include "infer/tokenize/byte_count.h"
#include "infer/tokenizer.h"

namespace kvloom {

// A document or a part of one.
struct Piece {
  std::string text;  // with `line`, the JSON around it
  Part part = Part::kTraining;
  bool starts_document = false;
  bool ends_document = false;
  const std::string* source = nullptr;  // its name
  std::uint64_t line = 0;               // of JSON lines, the line's number
};

struct EncoderOptions {
  int threads;
  std::string text_key;     // of JSON lines
  bool refuses_nul = true;  // in plain text
};

// What became of the texts so far.
struct EncoderCounts {
  std::uint64_t documents = 0;  // the two parts of one that was split count as two
  std::uint64_t empty = 0;      // JSON lines without text: left out
  std::uint64_t text_bytes = 0;
  std::uint64_t ill_formed_bytes = 0;  // of no UTF-8
};

// Collects pieces, encodes a batch at a time, appends in order.
class Encoder {
 public:
  // All outlive it.
  Encoder(const Tokenizer& tokenizer, TokenFileWriter& writer, EncoderOptions options, ByteCount done);

  // Throws what encoding throws, maybe of a piece that was added earlier.
  void add(Piece piece);
  void flush();

  const EncoderCounts& counts() const { return counts_; }

 private:
  struct Encoded {
    std::vector<std::int32_t> tokens;
    std::uint64_t text_bytes = 0;
    std::uint64_t ill_formed_bytes = 0;
  };
  Encoded encode(Piece& piece) const;

  const Tokenizer& tokenizer_;
  TokenFileWriter& writer_;
  EncoderOptions options_;
  ByteCount done_;
  std::vector<Piece> pieces_;
  std::uint64_t bytes_ = 0;  // of the pieces that wait
  EncoderCounts counts_;
};

}  // namespace kvloom
