// Server-sent events out of bytes as they come: the data of each, until "[DONE]". Events hold one line of data each, as
// OpenAI's do; lines may end in CR LF, and comments and other fields are passed over.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <utility>

namespace kvloom {

class EventStream {
 public:
  explicit EventStream(std::function<void(std::string_view)> take) : take_(std::move(take)) {}

  void add(std::string_view bytes) {
    pending_ += bytes;
    std::size_t begin = 0;
    for (std::size_t end = pending_.find('\n'); end != std::string::npos; end = pending_.find('\n', begin)) {
      take_line(std::string_view(pending_).substr(begin, end - begin));
      begin = end + 1;
    }
    pending_.erase(0, begin);
  }

  bool is_done() const { return is_done_; }  // "[DONE]" has come

 private:
  void take_line(std::string_view line) {
    constexpr std::string_view kField = "data:";
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (!line.starts_with(kField) || is_done_) return;
    line.remove_prefix(kField.size());
    if (line.starts_with(' ')) line.remove_prefix(1);
    if (line == "[DONE]") {
      is_done_ = true;
    } else {
      take_(line);
    }
  }

  std::function<void(std::string_view)> take_;
  std::string pending_;
  bool is_done_ = false;
};

}  // namespace kvloom
