#include "infer/text/text_stream.h"

#include <utility>

#include "infer/unicode.h"

namespace kvloom {

TextStream::TextStream(const Tokenizer& tokenizer, TextStreamOptions options)
    : tokenizer_(tokenizer),
      ill_formed_(options.ill_formed),
      decoder_(tokenizer, options.place),
      filter_(options.stops) {}

void TextStream::add_text(std::string text, std::string& ready) {
  if (text.empty()) return;
  if (ill_formed_ == IllFormed::kReplace) text = replace_ill_formed(text);
  // The character that tokens were waiting for is the first of this text.
  const std::size_t first = is_well_formed(text) ? first_character(text).bytes : text.size();
  ends_.insert(ends_.end(), std::exchange(unfinished_, 0), decoded_ + first);
  decoded_ += text.size();
  ready += filter_.push(text);
}

TextPiece TextStream::push(std::int32_t id) {
  if (stopped()) return {};
  TextPiece piece;
  if (id >= 0 && id < tokenizer_.vocab()) add_text(decoder_.push(id), piece.text);
  if (decoder_.waits()) {
    ++unfinished_;
  } else {
    ends_.push_back(decoded_);
  }
  piece.tokens = leaving();
  return piece;
}

TextPiece TextStream::finish() {
  if (stopped()) return {};
  TextPiece piece;
  add_text(decoder_.finish(), piece.text);
  ends_.insert(ends_.end(), std::exchange(unfinished_, 0), decoded_);
  piece.text += filter_.finish();
  piece.tokens = leaving();
  return piece;
}

std::size_t TextStream::leaving() {
  std::size_t count = 0;
  while (!ends_.empty() && (ends_.front() <= filter_.shown() || (stopped() && left_until_ < filter_.shown()))) {
    left_until_ = ends_.front();
    ends_.pop_front();
    ++count;
  }
  return count;
}

}  // namespace kvloom
