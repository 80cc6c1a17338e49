// What a run says about each step: one JSON object a line, at the end of a file that a resumed run goes on with. What
// an evaluation measured after a step stands in that step's object: `validation_loss`, `validation_perplexity`. It has
// an object of its own, with these and `step`, before the first step (step 0) and where a run stopped during an
// evaluation and did it when it went on.
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace kvloom {

struct EvaluationMetrics {
  std::uint64_t step = 0;
  double loss = 0;  // nats per token
};

struct StepMetrics {
  std::uint64_t step = 0;
  double loss = 0;  // nats per token over the global batch
  double learning_rate = 0;
  double grad_norm = 0;
  double tokens_per_second = 0;
  std::map<std::string, double> more;  // further fields, written after these
};

// The fields that say what an evaluation measured, without its step: validation_loss, in nats per token, and
// validation_perplexity, e to its power.
std::map<std::string, double> fields_of(const EvaluationMetrics& metrics);

// The line without its newline. Numbers that JSON cannot write (NaN, infinity) become null.
std::string metrics_line(const StepMetrics& metrics);
std::string metrics_line(const EvaluationMetrics& metrics);

class MetricsWriter {
 public:
  // Goes on with the file, or begins it. Lines of steps after `resumed_step` are dropped first, and so is a last line
  // that was cut short; the file keeps its old content until that is done. A run from the beginning resumes step 0, of
  // which no line is kept either.
  // Throws InputError naming the line when the file holds anything else, Error when it cannot be written.
  MetricsWriter(std::filesystem::path path, std::uint64_t resumed_step);

  // The line is with the operating system when this returns. Throws Error naming the file when it cannot be written.
  void write(const StepMetrics& metrics) { append(metrics_line(metrics)); }
  // Of the resumed step, it takes the place of the line that a run wrote which ended before it had saved that.
  void write(const EvaluationMetrics& metrics);

 private:
  // A line of an evaluation alone, at the end of what is gone on with.
  struct LastEvaluation {
    std::uint64_t step;
    std::uintmax_t offset;  // of its line
  };

  static std::optional<LastEvaluation> last_evaluation(std::string_view kept);
  void append(const std::string& line);

  struct CloseFile {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };

  std::filesystem::path path_;
  std::unique_ptr<std::FILE, CloseFile> file_;
  std::optional<LastEvaluation> evaluated_;  // until a line is written
};

}  // namespace kvloom
