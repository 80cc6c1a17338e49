// A text file in pieces, so that memory does not grow with it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <string_view>

#include "infer/tokenize/byte_stream.h"

namespace kvloom {

inline constexpr std::uint64_t kNoBoundary = std::numeric_limits<std::uint64_t>::max();

// How long a prefix of a text may be cut off, 0 where nowhere at `from` or behind it.
using Cutter = std::function<std::size_t(std::string_view text, std::size_t from)>;

// Cuts behind the last newline, or, in a line longer than that, before the last character.
std::size_t cut_at_line(std::string_view text, std::size_t from);

// Pieces have about `size` bytes, or more where the cutter finds no place before that, and in the end kLongestPiece.
// None lies on both sides of `boundary`: the last piece before it ends there, or with the line before it.
class PieceReader {
 public:
  static constexpr std::size_t kLongestPiece = std::size_t{64} << 20;

  PieceReader(std::unique_ptr<ByteStream> text, std::size_t size, Cutter cutter = cut_at_line,
              std::uint64_t boundary = kNoBoundary);

  // False at the end.
  bool next(std::string& piece);

  // Whether the last piece was.
  bool is_past_boundary() const { return is_past_boundary_; }
  // Pieces that ended where the cutter did not want them to.
  std::uint64_t forced_cuts() const { return forced_cuts_; }

 private:
  // Appends the next bytes, none beyond the boundary. False at the end of the text.
  bool extend(std::string& piece);

  std::unique_ptr<ByteStream> text_;
  std::size_t size_;
  Cutter cutter_;
  std::uint64_t boundary_;
  std::uint64_t place_ = 0;  // bytes read
  std::string rest_;
  bool is_past_boundary_ = false;
  std::uint64_t forced_cuts_ = 0;
};

// A text in lines, without their ends, however long.
class TextLines {
 public:
  explicit TextLines(std::unique_ptr<ByteStream> text) : text_(std::move(text)) {}

  // False at the end.
  bool next(std::string& line);
  std::uint64_t number() const { return number_; }  // of the last line, from 1

 private:
  static constexpr std::size_t kBuffer = std::size_t{1} << 20;

  std::unique_ptr<ByteStream> text_;
  std::string buffer_;
  std::size_t at_ = 0;
  std::size_t searched_ = 0;
  std::uint64_t number_ = 0;
  bool at_end_ = false;
};

}  // namespace kvloom
