// Stop texts in a text that comes piece by piece.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace kvloom {

// Gives out a text up to the stop text that begins first in it, whatever the order of the stop texts and wherever the
// pieces end. What may be the beginning of a stop text is held back until it is known whether it is one; all else comes
// out at once. Where one stop text stands whole and another that began before it may still come, the filter waits for
// that. The time is linear in the length of the text, for each stop text.
class StopFilter {
 public:
  // Empty stop texts are left out.
  explicit StopFilter(const std::vector<std::string>& stops);

  // The text that can be shown now. After a stop there is none.
  std::string push(std::string_view piece);
  // What was held back, now that no more comes; this too ends where a stop text stands.
  std::string finish();

  bool stopped() const { return stopped_; }
  // Bytes given out so far.
  std::size_t shown() const { return shown_; }

 private:
  // Follows one stop text by Knuth, Morris and Pratt.
  struct Search {
    std::string stop;
    std::vector<std::size_t> borders;  // of its prefixes: the longest proper end that is also a beginning
    std::size_t matched = 0;           // the longest end of the text that begins `stop`
  };
  static void advance(Search& search, char c);
  // Where the earliest stop text begins that may still come, and where the earliest begins that stands.
  std::size_t earliest_beginning() const;
  bool settled() const { return found_.has_value() && earliest_beginning() >= *found_; }
  std::string release(std::size_t end);

  std::vector<Search> searches_;
  std::string held_;  // text from `shown_` on
  std::size_t shown_ = 0;
  std::size_t length_ = 0;            // of the text that was looked at
  std::optional<std::size_t> found_;  // where the earliest stop text begins that stands whole
  bool stopped_ = false;
};

}  // namespace kvloom
