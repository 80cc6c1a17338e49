// Scores that are on disk, so that an evaluation which was interrupted goes on. Each rank appends to a file of its own
// in the output folder, progress-<rank>.jsonl: a line that says what is evaluated, then one a request.
#pragma once

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <span>
#include <string>

#include "infer/evaluation/scoring.h"
#include "parallel/communicator.h"

namespace kvloom {

enum class EvaluationStart : std::uint8_t {
  kFresh,   // refuses a folder that holds progress
  kResume,  // goes on from the progress in the folder, if any, of whatever number of ranks
};

class ProgressLog {
 public:
  // Keeps nothing.
  ProgressLog() = default;
  // `identity` is an object that tells one evaluation from another; of its fields "model" is a checksum, "tasks" a
  // list of objects {"task": NAME, "checksum": ..} and "requests" a number. Makes the folder. Collective. Throws
  // InputError when the folder's progress is of another evaluation, naming the first field that differs, or is damaged
  // other than at its end.
  ProgressLog(const std::filesystem::path& folder, const nlohmann::ordered_json& identity, EvaluationStart start,
              Communicator& world);

  // What was on disk at the start, by request; every rank has all.
  const std::map<std::size_t, Score>& known() const { return known_; }

  // Each request's score is with the operating system when this returns. What was known stands there already: a batch
  // of which a killed run had written a part is computed again as a whole.
  void add(std::span<const std::size_t> requests, std::span<const Score> scores);

 private:
  std::filesystem::path path_;
  std::ofstream file_;
  std::map<std::size_t, Score> known_;
};

// The lines of scores, as in progress files; `where` stands in messages of what is damaged.
std::string progress_lines(std::span<const std::size_t> requests, std::span<const Score> scores);
void read_progress_line(const std::string& line, const std::string& where, std::map<std::size_t, Score>& scores);

}  // namespace kvloom
