// Lines of input that are dealt out among replicas, the n-th to replica n modulo their number, and their answers, which
// come together on the first replica in the order of the lines.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "parallel/sent_messages.h"

namespace kvloom {

class DealtLines {
 public:
  // `leaders`: one rank of each replica. It outlives this. Lines are counted from 0.
  explicit DealtLines(Communicator& leaders);

  bool is_own(std::int64_t line) const { return line % leaders_.size() == leaders_.rank(); }
  // The line that is this replica's n-th.
  std::int64_t own(std::int64_t n) const { return n * leaders_.size() + leaders_.rank(); }

  // The answer of this replica's next line. On the first one it waits for its turn, on others it is sent.
  void give(std::string answer);
  // On the first replica: calls `write` for answers that are next in order and have come.
  void write_what_came(const std::function<void(std::int64_t line, const std::string& answer)>& write);
  // This replica has no more lines. On the first one writes what is missing, and waits for it.
  void finish(const std::function<void(std::int64_t line, const std::string& answer)>& write);

 private:
  static constexpr std::int64_t kEnd = -1;  // in place of a length
  struct Awaited {
    std::int64_t length = 0;
    Transfer begin;
  };
  void send(std::int64_t length, std::string text);
  // The next line's answer; false when it has not come, or there is none: then that is the end.
  bool take(std::string& answer);

  Communicator& leaders_;
  std::deque<std::string> own_;
  SentMessages<TextMessage> sent_;
  std::map<int, std::unique_ptr<Awaited>> awaited_;  // by replica
  std::int64_t written_ = 0;
  bool has_finished_ = false;  // this replica
  bool at_end_ = false;        // all lines
};

}  // namespace kvloom
