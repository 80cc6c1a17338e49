#include "infer/evaluation/progress.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <vector>

#include "core/file.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr std::uint64_t kLargestFile = std::uint64_t{4} << 30;

fs::path file_of(const fs::path& folder, int rank) { return folder / fmt::format("progress-{}.jsonl", rank); }

std::vector<fs::path> files_in(const fs::path& folder) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("progress-") && name.ends_with(".jsonl")) files.push_back(entry.path());
  }
  std::ranges::sort(files);
  return files;
}

// Whole lines: the last one may have been cut off while it was written.
std::vector<std::string> whole_lines(const std::string& text) {
  std::vector<std::string> lines;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = text.find('\n', begin);
    if (end == std::string::npos) break;
    lines.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return lines;
}

Json parse_object(const std::string& line, const std::string& where) {
  Json object = Json::parse(line, nullptr, false);
  if (!object.is_object()) reject_input("{}: is damaged; without the file, evaluation begins anew", where);
  return object;
}

std::string name_of(const Json& task) { return (task.is_object() ? task.value("task", Json()) : task).dump(); }

std::string names_of(const Json& tasks) {
  std::vector<std::string> names;
  for (const Json& task : tasks) names.push_back(name_of(task));
  return fmt::format("{}", fmt::join(names, ", "));
}

// What differs, in words where its value is a checksum.
std::string difference_of(const std::string& field, const Json& before, const Json& now) {
  if (field == "model") return "its checkpoint is another than the one given now";
  if (field == "requests") {
    return fmt::format("it has {} requests, now {}: with another --limit?", before.dump(), now.dump());
  }
  if (field != "tasks") return fmt::format("its {} is {}, now {}", field, before.dump(), now.dump());
  const std::string names = names_of(before);
  if (names != names_of(now)) return fmt::format("its tasks are {}, now {}", names, names_of(now));
  for (std::size_t i = 0; before.is_array() && i < now.size(); ++i) {
    if (before[i] != now[i]) return fmt::format("the task file of {} had another content", name_of(now[i]));
  }
  return "its tasks are others";
}

void check_identity(const Json& stored, const Json& wanted, const std::string& file) {
  for (const auto& [field, value] : wanted.items()) {
    const Json other = stored.value(field, Json());
    if (other == value) continue;
    reject_input("'{}' is of another evaluation: {}; right is another --output", file,
                 difference_of(field, other, value));
  }
}

std::map<std::size_t, Score> read_all(const std::vector<fs::path>& files, const Json& identity) {
  std::map<std::size_t, Score> scores;
  for (const fs::path& file : files) {
    const std::vector<std::string> lines = whole_lines(read_file(file, kLargestFile));
    for (std::size_t i = 0; i < lines.size(); ++i) {
      const std::string where = fmt::format("{}, line {}", file.string(), i + 1);
      if (i == 0) {
        check_identity(parse_object(lines[i], where), identity, file.string());
      } else {
        read_progress_line(lines[i], where, scores);
      }
    }
  }
  return scores;
}

std::string lines_of(const std::map<std::size_t, Score>& scores) {
  std::vector<std::size_t> requests;
  std::vector<Score> values;
  for (const auto& [request, score] : scores) {
    requests.push_back(request);
    values.push_back(score);
  }
  return progress_lines(requests, values);
}

[[noreturn]] void refuse_existing(const fs::path& folder) {
  reject_input("'{}' holds an evaluation; right is --resume auto, to go on with it, or another --output",
               folder.string());
}

// What all ranks had, in one file; the others go.
std::string gather_progress(const fs::path& folder, const Json& identity, EvaluationStart start) {
  fs::create_directories(folder);
  const std::vector<fs::path> files = files_in(folder);
  if (start == EvaluationStart::kFresh && !files.empty()) refuse_existing(folder);
  const std::string lines = lines_of(read_all(files, identity));
  write_file_atomically(file_of(folder, 0), identity.dump() + "\n" + lines);
  for (const fs::path& file : files) {
    if (file != file_of(folder, 0)) fs::remove(file);
  }
  return lines;
}

// What is in a rank's file and in no file that rank 0 saw: they need not share a disk.
std::string unseen_lines(const fs::path& file, const Json& identity, EvaluationStart start,
                         const std::map<std::size_t, Score>& known) {
  if (!fs::exists(file)) return {};
  if (start == EvaluationStart::kFresh) refuse_existing(file.parent_path());
  std::map<std::size_t, Score> scores = read_all({file}, identity);
  std::erase_if(scores, [&](const auto& score) { return known.contains(score.first); });
  return lines_of(scores);
}

}  // namespace

std::string progress_lines(std::span<const std::size_t> requests, std::span<const Score> scores) {
  std::string lines;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    lines += Json{{"request", requests[i]}, {"log_likelihood", scores[i].log_likelihood}, {"greedy", scores[i].greedy}}
                 .dump() +
             "\n";
  }
  return lines;
}

void read_progress_line(const std::string& line, const std::string& where, std::map<std::size_t, Score>& scores) {
  const Json object = parse_object(line, where);
  const auto field = [&](const char* name) { return object.value(name, Json()); };
  if (!field("request").is_number_unsigned() || !field("log_likelihood").is_number() || !field("greedy").is_boolean()) {
    reject_input("{}: is damaged; without the file, evaluation begins anew", where);
  }
  scores[field("request").get<std::size_t>()] = {field("log_likelihood").get<double>(), field("greedy").get<bool>()};
}

ProgressLog::ProgressLog(const fs::path& folder, const Json& identity, EvaluationStart start, Communicator& world)
    : path_(file_of(folder, world.rank())) {
  const std::string lines =
      broadcast_bytes(world, world.rank() == 0 ? gather_progress(folder, identity, start) : std::string(), 0);
  for (const std::string& line : whole_lines(lines)) read_progress_line(line, path_.string(), known_);
  const std::string own = world.rank() == 0 ? std::string() : unseen_lines(path_, identity, start, known_);
  for (int rank = 1; rank < world.size(); ++rank) {
    for (const std::string& line : whole_lines(broadcast_bytes(world, own, rank))) {
      read_progress_line(line, path_.string(), known_);
    }
  }
  // Written anew: what a killed run left unfinished must not become the beginning of a line.
  if (world.rank() != 0) write_file_atomically(path_, identity.dump() + "\n" + own);
  file_.open(path_, std::ios::binary | std::ios::app);
  if (!file_) fail("evaluation: cannot write '{}'", path_.string());
}

void ProgressLog::add(std::span<const std::size_t> requests, std::span<const Score> scores) {
  if (!file_.is_open()) return;
  std::vector<std::size_t> new_requests;
  std::vector<Score> new_scores;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    if (known_.contains(requests[i])) continue;
    new_requests.push_back(requests[i]);
    new_scores.push_back(scores[i]);
  }
  file_ << progress_lines(new_requests, new_scores) << std::flush;
  if (!file_) fail("evaluation: cannot write '{}'; is the disk full?", path_.string());
}

}  // namespace kvloom
