#include "infer/tokenize/encoder.h"

#include <exception>
#include <utility>

#include "infer/tokenize/json_line.h"
#include "infer/tokenize/text_file.h"
#include "infer/unicode.h"

namespace kvloom {
namespace {

// Encoded together: enough for many threads, little enough for memory.
constexpr std::uint64_t kBatchBytes = std::uint64_t{16} << 20;
constexpr std::size_t kBatchPieces = std::size_t{1} << 15;

}  // namespace

Encoder::Encoder(const Tokenizer& tokenizer, TokenFileWriter& writer, EncoderOptions options, ByteCount done)
    : tokenizer_(tokenizer), writer_(writer), options_(std::move(options)), done_(std::move(done)) {}

void Encoder::add(Piece piece) {
  bytes_ += piece.text.size();
  pieces_.push_back(std::move(piece));
  if (bytes_ >= kBatchBytes || pieces_.size() == kBatchPieces) flush();
}

void Encoder::flush() {
  std::vector<Encoded> encoded(pieces_.size());
  std::vector<std::exception_ptr> faults(pieces_.size());
#pragma omp parallel for schedule(dynamic) num_threads(options_.threads)
  for (std::size_t i = 0; i < pieces_.size(); ++i) {
    try {
      encoded[i] = encode(pieces_[i]);
    } catch (...) {
      faults[i] = std::current_exception();
    }
  }
  for (const std::exception_ptr& fault : faults) {
    if (fault) std::rethrow_exception(fault);
  }
  for (std::size_t i = 0; i < pieces_.size(); ++i) {
    const Piece& piece = pieces_[i];
    if (encoded[i].tokens.empty() && piece.line > 0) {
      ++counts_.empty;
      continue;
    }
    if (piece.starts_document) writer_.begin_document(piece.part);
    writer_.append(piece.part, encoded[i].tokens, encoded[i].text_bytes);
    counts_.documents += piece.starts_document ? 1 : 0;
    counts_.text_bytes += encoded[i].text_bytes;
    counts_.ill_formed_bytes += encoded[i].ill_formed_bytes;
  }
  pieces_.clear();
  done_.add(std::exchange(bytes_, 0));
}

// A document stands between the ids that the tokenizer puts around a text, and a separator ends it. A JSON line without
// text gives no ids at all.
Encoder::Encoded Encoder::encode(Piece& piece) const {
  Encoded encoded{.ill_formed_bytes = ill_formed_bytes(piece.text)};
  if (piece.line > 0) {
    piece.text =
        text_of_json_line(piece.text, options_.text_key, fmt::format("'{}', line {}", *piece.source, piece.line));
    if (piece.text.empty()) return encoded;
  } else if (options_.refuses_nul) {
    refuse_nul(piece.text, *piece.source);
  }
  encoded.text_bytes = piece.text.size();
  std::vector<std::int32_t>& ids = encoded.tokens;
  if (piece.starts_document) ids = tokenizer_.start_ids();
  tokenizer_.encode(piece.text, piece.starts_document ? Place::kStart : Place::kMiddle, ids);
  if (!piece.ends_document) return encoded;
  const std::vector<std::int32_t> end = tokenizer_.end_ids();
  ids.insert(ids.end(), end.begin(), end.end());
  if (end.empty() || end.back() != tokenizer_.separator()) ids.push_back(tokenizer_.separator());
  return encoded;
}

}  // namespace kvloom
