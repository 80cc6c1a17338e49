#include "infer/text/stop_filter.h"

#include <algorithm>
#include <utility>

namespace kvloom {
namespace {

std::vector<std::size_t> borders_of(std::string_view text) {
  std::vector<std::size_t> borders(text.size() + 1, 0);
  for (std::size_t i = 1; i < text.size(); ++i) {
    std::size_t border = borders[i];
    while (border > 0 && text[border] != text[i]) border = borders[border];
    borders[i + 1] = text[border] == text[i] ? border + 1 : 0;
  }
  return borders;
}

}  // namespace

StopFilter::StopFilter(const std::vector<std::string>& stops) {
  for (const std::string& stop : stops) {
    if (!stop.empty()) searches_.push_back({.stop = stop, .borders = borders_of(stop)});
  }
}

void StopFilter::advance(Search& search, char c) {
  if (search.matched == search.stop.size()) search.matched = search.borders[search.matched];
  while (search.matched > 0 && search.stop[search.matched] != c) search.matched = search.borders[search.matched];
  if (search.stop[search.matched] == c) ++search.matched;
}

std::size_t StopFilter::earliest_beginning() const {
  std::size_t earliest = length_;
  for (const Search& search : searches_) {
    const bool whole = search.matched == search.stop.size();
    earliest = std::min(earliest, length_ - (whole ? search.borders[search.matched] : search.matched));
  }
  return earliest;
}

std::string StopFilter::release(std::size_t end) {
  const std::size_t bytes = end - shown_;
  std::string ready = held_.substr(0, bytes);
  held_.erase(0, bytes);
  shown_ = end;
  return ready;
}

std::string StopFilter::push(std::string_view piece) {
  if (stopped_) return {};
  held_ += piece;
  for (const char c : piece) {
    ++length_;
    for (Search& search : searches_) {
      advance(search, c);
      if (search.matched != search.stop.size()) continue;
      const std::size_t begin = length_ - search.matched;
      found_ = std::min(begin, found_.value_or(begin));
    }
    if (settled()) return finish();
  }
  return release(std::min(earliest_beginning(), found_.value_or(length_)));
}

std::string StopFilter::finish() {
  if (stopped_) return {};
  stopped_ = found_.has_value();
  std::string rest = release(found_.value_or(shown_ + held_.size()));
  held_.clear();
  return rest;
}

}  // namespace kvloom
