// Results in a file, each with a key of what it came of, so that an interrupted run goes on with its own and with no
// other's. Results that wait for earlier ones stand in a file beside it meanwhile, named like it with ".waiting", so
// that they outlast the end of the process too.
#pragma once

#include <cstdint>
#include <deque>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

#include "infer/generation/answer_file.h"
#include "infer/generation/line_reader.h"

namespace kvloom {

class KeyedOutput {
 public:
  // `shared` says all that results depend on beside their lines of input. Throws as AnswerFile does.
  KeyedOutput(const std::filesystem::path& path, AnswerStart start, std::string_view shared);

  // Goes over the results that are there; `next` gives the lines that they must be of. Returns how many there are.
  // Throws InputError, naming the line, for results of other lines or of something else.
  std::int64_t skip_known(const std::function<std::optional<InputLine>()>& next);
  // The line's result is to come, after those of the lines before it.
  void expect(const InputLine& line) { expected_.push_back(key_of(line)); }
  // Of the line that was expected last, which has this number, the result with its key, if it was waiting when a run
  // before ended; else empty.
  std::string waiting(std::int64_t index) const;
  // Adds the key to the result of the first expected line, and writes it.
  void add(nlohmann::ordered_json result);
  // Writes the first expected line's result, as `waiting` gave it.
  void add_waiting(std::string_view result);
  // The result of the expected line that has `before` others before it is to wait for theirs.
  void keep_waiting(std::size_t before, nlohmann::ordered_json result);
  // All results have reached the disk when this returns, and nothing waits.
  void finish();

 private:
  std::string key_of(const InputLine& line) const;
  void check_known(const std::string& known, std::int64_t index, const std::optional<InputLine>& line) const;

  std::string path_;
  std::string shared_;  // its checksum
  AnswerFile file_;
  std::filesystem::path waiting_path_;
  AnswerFile waiting_file_;
  AnswerStart start_;
  // By number: results as they stand in the file, of lines that are not written yet.
  std::unordered_map<std::int64_t, std::string> waiting_;
  std::deque<std::string> expected_;  // keys
};

}  // namespace kvloom
