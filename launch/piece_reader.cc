#include "launch/piece_reader.h"

#include <algorithm>
#include <utility>

#include "kernels/error.h"

namespace kvloom {
namespace {

// After the last newline, or, in a line longer than a piece, before the last character's first byte.
std::size_t cut_of(const std::string& piece) {
  const std::size_t line_end = piece.rfind('\n');
  if (line_end != std::string::npos) return line_end + 1;
  std::size_t end = piece.size() - 1;
  while (end > 0 && (static_cast<unsigned char>(piece[end]) & 0xc0) == 0x80) --end;
  return end > 0 ? end : piece.size();
}

}  // namespace

PieceReader::PieceReader(const std::filesystem::path& path, std::size_t size, std::uint64_t boundary)
    : path_(path), size_(size), boundary_(boundary), file_(path, std::ios::binary) {
  if (!file_) reject_input("'{}': cannot be opened", path_.string());
}

bool PieceReader::next(std::string& piece) {
  piece = std::exchange(rest_, {});
  const std::size_t have = piece.size();
  const bool before = place_ < boundary_;
  const auto wanted = static_cast<std::size_t>(before ? std::min<std::uint64_t>(size_, boundary_ - place_) : size_);
  piece.resize(have + wanted);
  file_.read(piece.data() + have, static_cast<std::streamsize>(wanted));
  piece.resize(have + static_cast<std::size_t>(file_.gcount()));
  place_ += static_cast<std::uint64_t>(file_.gcount());
  if (file_.bad()) reject_input("'{}': reading failed", path_.string());
  if (!file_.eof()) {
    const std::size_t end = cut_of(piece);
    rest_ = piece.substr(end);
    piece.resize(end);
  }
  is_past_boundary_ = !before;
  return !piece.empty();
}

}  // namespace kvloom
