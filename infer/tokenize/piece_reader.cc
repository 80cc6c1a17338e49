#include "infer/tokenize/piece_reader.h"

#include <algorithm>
#include <utility>

#include "infer/text_cut.h"

namespace kvloom {

std::size_t cut_at_line(std::string_view text, std::size_t) {
  const std::size_t line_end = text.rfind('\n');
  return line_end != text.npos ? line_end + 1 : character_cut(text);
}

PieceReader::PieceReader(std::unique_ptr<ByteStream> text, std::size_t size, Cutter cutter, std::uint64_t boundary)
    : text_(std::move(text)), size_(size), cutter_(std::move(cutter)), boundary_(boundary) {}

bool PieceReader::extend(std::string& piece) {
  const std::size_t have = piece.size();
  const bool before = place_ < boundary_;
  const auto wanted = static_cast<std::size_t>(before ? std::min<std::uint64_t>(size_, boundary_ - place_) : size_);
  piece.resize(have + wanted);
  const std::size_t count = text_->read(std::span(piece).subspan(have));
  piece.resize(have + count);
  place_ += count;
  return count == wanted;
}

bool PieceReader::next(std::string& piece) {
  piece = std::exchange(rest_, {});
  const bool before = place_ < boundary_;
  is_past_boundary_ = !before;
  std::size_t tried = 0;
  while (extend(piece)) {
    std::size_t cut = 0;
    if (before && place_ == boundary_) {
      cut = cut_at_line(piece, 0);
    } else {
      cut = cutter_(piece, tried);
      tried = piece.size() - std::min(piece.size(), kCutContext);
      if (cut == 0 && piece.size() < kLongestPiece) continue;
      if (cut == 0) ++forced_cuts_;
      if (cut == 0) cut = character_cut(piece);
    }
    rest_ = piece.substr(cut);
    piece.resize(cut);
    break;
  }
  return !piece.empty();
}

bool TextLines::next(std::string& line) {
  while (true) {
    const std::size_t end = buffer_.find('\n', searched_);
    if (end != buffer_.npos || (at_end_ && at_ < buffer_.size())) {
      const std::size_t stop = std::min(end, buffer_.size());
      line.assign(buffer_, at_, stop - at_);
      at_ = searched_ = std::min(stop + 1, buffer_.size());
      ++number_;
      return true;
    }
    if (at_end_) return false;
    buffer_.erase(0, at_);
    at_ = 0;
    const std::size_t have = searched_ = buffer_.size();
    buffer_.resize(have + kBuffer);
    const std::size_t count = text_->read(std::span(buffer_).subspan(have));
    buffer_.resize(have + count);
    at_end_ = count < kBuffer;
  }
}

}  // namespace kvloom
