// Many prompts to an engine, and their texts in the order of the prompts. A bounded number of prompts is read ahead, so
// that memory does not grow with the input.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "infer/generation/generation.h"

namespace kvloom {

// What one line of the input asks for.
struct OfflinePrompt {
  std::string place;  // of the line, in messages: "prompts.jsonl: line 3"
  std::optional<TextRequest> request;
  std::string problem;  // where there is none: why, with the place
  std::string known;    // or the line's result, from a run before
};

// A line that cannot be used, or that the engine refuses.
enum class BadLines : std::uint8_t {
  kReport,  // its result says why, and the others go on
  kStop,    // the last one that is read: those before it are written, then InputError is thrown
};

struct OfflineOptions {
  std::string where = "input";      // of the lines, in messages
  std::int64_t first = 0;           // number of the first line
  std::int64_t lines_ahead = 1024;  // read and not yet written, at most
  std::int64_t texts_ahead = 512;   // with the engine at one time, at most, or those of one line
  BadLines bad_lines = BadLines::kReport;
};

struct OfflineCounts {
  std::int64_t lines = 0;  // written
  std::int64_t bad_lines = 0;
  std::int64_t capped = 0;  // lines of which a token settled because of prefill_passes
  std::int64_t failed = 0;  // texts
  std::int64_t prompt_tokens = 0;
  std::int64_t new_tokens = 0;
};

struct OfflineCalls {
  std::function<std::optional<OfflinePrompt>()> next;  // the lines in order; nothing: there are no more
  // Called for each line in order, with its number. The message of one that was refused begins with its place.
  std::function<void(std::int64_t line, const TextResult& result)> write;
  // The same, of a line whose result was known.
  std::function<void(const std::string& known)> write_known;
  // Called once for a line whose texts have ended while lines before it are still to be written.
  std::function<void(std::int64_t line, const TextResult& result)> ended_early;
  std::function<void(const OfflineCounts& counts)> progress;  // after each step of the engine
};

// The engine has no other requests. `write_known` and `ended_early` may be empty. Throws what the calls and the engine
// throw.
OfflineCounts generate_offline(Engine& engine, const TextModel& model, const OfflineOptions& options,
                               const OfflineCalls& calls);

}  // namespace kvloom
