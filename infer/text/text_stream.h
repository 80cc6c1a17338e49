// From token ids to text that is safe to show, and which tokens it stands for.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "infer/text/stop_filter.h"
#include "infer/tokenizer.h"

namespace kvloom {

// What to do with bytes that are no UTF-8, where the tokenizer does not put U+FFFD in their place itself.
enum class IllFormed { kReplace, kKeep };

struct TextStreamOptions {
  Place place = Place::kMiddle;    // of the text: it goes on with another, or starts one
  std::vector<std::string> stops;  // the text ends before the one that begins first
  IllFormed ill_formed = IllFormed::kReplace;
};

// Text that leaves the stream, and how many tokens leave with it: those next in the order of `push`.
struct TextPiece {
  std::string text;
  std::size_t tokens = 0;
};

// A token leaves with the last byte of its text, or with what comes before it if it has none. At a stop, a token of
// which a part is shown leaves too, and the tokens behind it never do. Characters are never split.
class TextStream {
 public:
  // `tokenizer` must outlive the stream.
  TextStream(const Tokenizer& tokenizer, TextStreamOptions options);

  // What leaves now that `id` has come; nothing after a stop. An id that the tokenizer does not know has no text.
  TextPiece push(std::int32_t id);
  // What is left at the end, in which a character that lacks bytes is U+FFFD.
  TextPiece finish();

  // Whether a stop text has come; known at the latest after `finish`.
  bool stopped() const { return filter_.stopped(); }

 private:
  void add_text(std::string text, std::string& ready);
  std::size_t leaving();

  const Tokenizer& tokenizer_;
  IllFormed ill_formed_;
  StreamDecoder decoder_;
  StopFilter filter_;
  std::size_t decoded_ = 0;       // bytes of text so far
  std::deque<std::size_t> ends_;  // of the tokens that have not left: where their text ends
  std::size_t unfinished_ = 0;    // tokens behind those, whose text ends in a character that lacks bytes
  std::size_t left_until_ = 0;    // where the text of the last token that left ends
};

}  // namespace kvloom
