#include "train/metrics.h"

#include <cerrno>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "core/file.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

constexpr std::uint64_t kLargestFile = std::uint64_t{1} << 32;

std::uint64_t step_of_line(std::string_view line, const std::filesystem::path& path, std::size_t number) {
  const nlohmann::json object = nlohmann::json::parse(line, nullptr, false);
  if (!object.is_object() || !object.contains("step") || !object["step"].is_number_unsigned()) {
    reject_input("{}: line {} is no object with a step; move the file away to begin a new one", path.string(), number);
  }
  return object["step"].get<std::uint64_t>();
}

// The whole lines of `text` up to the step; none up to step 0.
std::string lines_until(std::string_view text, std::uint64_t step, const std::filesystem::path& path) {
  std::string kept;
  std::size_t number = 0;
  for (std::size_t end = text.find('\n'); end != std::string_view::npos; end = text.find('\n')) {
    const std::string_view line = text.substr(0, end + 1);
    if (step_of_line(line, path, ++number) <= step && step > 0) kept += line;
    text.remove_prefix(end + 1);
  }
  return kept;
}

}  // namespace

std::string metrics_line(const StepMetrics& metrics) {
  nlohmann::ordered_json object;
  object["step"] = metrics.step;
  object["loss"] = metrics.loss;
  object["learning_rate"] = metrics.learning_rate;
  object["grad_norm"] = metrics.grad_norm;
  object["tokens_per_second"] = metrics.tokens_per_second;
  for (const auto& [name, value] : metrics.more) object[name] = value;
  return object.dump();
}

std::string metrics_line(const EvaluationMetrics& metrics) {
  nlohmann::ordered_json object;
  object["step"] = metrics.step;
  for (const auto& [name, value] : fields_of(metrics)) object[name] = value;
  return object.dump();
}

std::map<std::string, double> fields_of(const EvaluationMetrics& metrics) {
  return {{"validation_loss", metrics.loss}, {"validation_perplexity", std::exp(metrics.loss)}};
}

MetricsWriter::MetricsWriter(std::filesystem::path path, std::uint64_t resumed_step) : path_(std::move(path)) {
  if (std::filesystem::exists(path_)) {
    const std::string old = read_file(path_, kLargestFile);
    const std::string kept = lines_until(old, resumed_step, path_);
    if (kept.size() != old.size()) write_file_atomically(path_, kept);
    evaluated_ = last_evaluation(kept);
  }
  file_.reset(std::fopen(path_.c_str(), "ae"));
  if (file_ == nullptr) fail("{}: cannot write: {}", path_.string(), std::strerror(errno));
}

std::optional<MetricsWriter::LastEvaluation> MetricsWriter::last_evaluation(std::string_view kept) {
  if (kept.empty()) return std::nullopt;
  const std::size_t before = kept.substr(0, kept.size() - 1).rfind('\n');
  const std::size_t offset = before == std::string_view::npos ? 0 : before + 1;
  const nlohmann::json object = nlohmann::json::parse(kept.substr(offset));
  if (object.contains("loss") || !object.contains("validation_loss")) return std::nullopt;
  return LastEvaluation{object["step"].get<std::uint64_t>(), offset};
}

void MetricsWriter::write(const EvaluationMetrics& metrics) {
  if (evaluated_ && evaluated_->step == metrics.step) std::filesystem::resize_file(path_, evaluated_->offset);
  append(metrics_line(metrics));
}

void MetricsWriter::append(const std::string& line) {
  evaluated_.reset();
  const std::string ended = line + "\n";
  const bool written =
      std::fwrite(ended.data(), 1, ended.size(), file_.get()) == ended.size() && std::fflush(file_.get()) == 0;
  if (!written) fail("{}: cannot write: {}", path_.string(), std::strerror(errno));
}

}  // namespace kvloom
