#include "infer/evaluation/task.h"

#include <algorithm>
#include <array>
#include <set>
#include <utility>

#include "core/checksum.h"
#include "core/file.h"
#include "infer/evaluation/json_record.h"
#include "infer/text/python_text.h"
#include "infer/unicode.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::uint64_t kLargestFile = std::uint64_t{4} << 30;
constexpr std::array kKinds = {TaskKind::kMultipleChoice, TaskKind::kLogLikelihood, TaskKind::kLogLikelihoodRolling};
constexpr std::array<const char*, 3> kChoiceMetrics = {"acc", "acc_norm", "acc_bytes"};
constexpr std::array<const char*, 2> kTargetMetrics = {"perplexity", "acc"};
constexpr std::array<const char*, 4> kTextMetrics = {"word_perplexity", "byte_perplexity", "bits_per_byte",
                                                     "token_perplexity"};

TaskKind kind_of(const Json& object, const std::string& place) {
  if (object.contains("text")) return TaskKind::kLogLikelihoodRolling;
  if (object.contains("choices") || object.contains("contexts")) return TaskKind::kMultipleChoice;
  if (object.contains("target")) return TaskKind::kLogLikelihood;
  reject_input(
      "{}: is no item: right are context, choices and answer; contexts, continuation and answer; context and "
      "target; or text",
      place);
}

bool is_name(const std::string& text) {
  const auto is_right = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' ||
           c == '-';
  };
  return !text.empty() && text.front() != '.' && std::ranges::all_of(text, is_right);
}

class Parser {
 public:
  explicit Parser(const std::string& name) : name_(name) {
    task_.path = name;
    task_.name = std::filesystem::path(name).stem().string();
  }

  void add(std::string_view line, std::size_t number) {
    const std::string place = fmt::format("{}, line {}", name_, number);
    Json object = parse_json_object(line, place);
    if (!begun_) {
      begun_ = true;
      if (object.contains("task")) return take_header(JsonRecord(object, place));
    }
    const TaskKind kind = kind_of(object, place);
    if (!kind_.has_value()) kind_ = kind;
    if (*kind_ != kind) {
      reject_input("{}: a {} item in a task of kind {}", place, kvloom::name_of(kind), kvloom::name_of(*kind_));
    }
    task_.items.push_back(item_of(JsonRecord(object, place), number));
    task_.items.back().content = std::move(object);
  }

  Task finish() {
    if (!is_name(task_.name)) {
      reject_input("{}: '{}' is no name of a task: right are letters, digits, '.', '_' and '-'", name_, task_.name);
    }
    if (task_.items.empty()) reject_input("{}: holds no items", name_);
    task_.kind = *kind_;
    task_.target_delimiter = delimiter();
    if (task_.metrics.empty()) {
      for (const char* metric : metrics_of(*kind_)) task_.metrics.emplace_back(metric);
    }
    check_metrics();
    return std::move(task_);
  }

 private:
  void take_header(const JsonRecord& header) {
    task_.name = header.text("task");
    if (header.has("kind")) kind_ = named_kind(header);
    if (header.has("target_delimiter")) delimiter_ = header.text("target_delimiter");
    if (header.has("metrics")) task_.metrics = header.texts("metrics");
    if (header.has("version")) task_.version = header.at("version");
    if (header.has("grid")) {
      const JsonRecord grid = header.object("grid");
      task_.grid = ResultGrid{grid.text("rows"), grid.text("columns")};
    }
  }

  TaskKind named_kind(const JsonRecord& header) const {
    const std::string name = header.text("kind");
    for (const TaskKind kind : kKinds) {
      if (name == kvloom::name_of(kind)) return kind;
    }
    header.reject("kind",
                  fmt::format("is '{}'; right are multiple_choice, loglikelihood and loglikelihood_rolling", name));
  }

  std::string delimiter() const {
    if (delimiter_.has_value()) return *delimiter_;
    return kind_ == TaskKind::kMultipleChoice ? " " : "";
  }

  TaskItem item_of(const JsonRecord& record, std::size_t line) const {
    TaskItem item{.line = line};
    switch (*kind_) {
      case TaskKind::kMultipleChoice:
        fill_choices(record, item);
        break;
      case TaskKind::kLogLikelihood:
        item.queries.push_back({record.text("context"), delimiter() + record.text("target")});
        if (item.queries.back().continuation.empty()) record.reject("target", "is empty");
        break;
      case TaskKind::kLogLikelihoodRolling:
        item.queries.push_back({"", record.text("text")});
        if (item.queries.back().continuation.empty()) record.reject("text", "is empty");
        item.words = record.count_or("words", count_words(item.queries.back().continuation));
        item.bytes = record.count_or("bytes", static_cast<std::int64_t>(item.queries.back().continuation.size()));
        break;
    }
    check_grid(record);
    return item;
  }

  void fill_choices(const JsonRecord& record, TaskItem& item) const {
    const bool partial = record.has("contexts");
    item.choices = record.texts(partial ? "contexts" : "choices");
    if (item.choices.size() < 2) record.reject(partial ? "contexts" : "choices", "has one alone");
    item.answers = record.indices("answer", item.choices.size());
    const std::string fixed = record.text(partial ? "continuation" : "context");
    for (const std::string& choice : item.choices) {
      if (choice.empty()) record.reject(partial ? "contexts" : "choices", "has an empty one");
      item.queries.push_back(partial ? Query{choice, delimiter() + fixed} : Query{fixed, delimiter() + choice});
    }
  }

  void check_grid(const JsonRecord& record) const {
    if (!task_.grid.has_value()) return;
    for (const std::string& field : {task_.grid->rows, task_.grid->columns}) {
      if (!record.at(field.c_str()).is_primitive()) record.reject(field.c_str(), "of the grid is no single value");
    }
  }

  void check_metrics() const {
    const std::span<const char* const> known = metrics_of(*kind_);
    for (const std::string& metric : task_.metrics) {
      if (std::ranges::find(known, metric) == known.end()) {
        reject_input("{}: metric '{}'; right for {} are {}", name_, metric, kvloom::name_of(*kind_),
                     fmt::join(known, ", "));
      }
    }
    if (task_.grid.has_value() && std::ranges::find(task_.metrics, "acc") == task_.metrics.end()) {
      reject_input("{}: a grid is of acc, which is not among the metrics", name_);
    }
  }

  const std::string& name_;
  Task task_{};
  std::optional<TaskKind> kind_;
  std::optional<std::string> delimiter_;
  bool begun_ = false;
};

}  // namespace

const char* name_of(TaskKind kind) {
  switch (kind) {
    case TaskKind::kMultipleChoice:
      return "multiple_choice";
    case TaskKind::kLogLikelihood:
      return "loglikelihood";
    case TaskKind::kLogLikelihoodRolling:
      return "loglikelihood_rolling";
  }
  fail("task: kind {}", static_cast<int>(kind));
}

std::span<const char* const> metrics_of(TaskKind kind) {
  if (kind == TaskKind::kMultipleChoice) return kChoiceMetrics;
  if (kind == TaskKind::kLogLikelihood) return kTargetMetrics;
  return kTextMetrics;
}

Task parse_task(const std::string& text, const std::string& name) {
  Parser parser(name);
  std::size_t number = 0;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = std::string_view(text).substr(begin, end - begin);
    ++number;
    if (!stripped(line).empty()) parser.add(line, number);
    begin = end + 1;
  }
  Task task = parser.finish();
  task.checksum = checksum(std::as_bytes(std::span(text)));
  return task;
}

Task read_task_file(const std::filesystem::path& path) {
  const std::string text = read_file(path, kLargestFile);
  if (!is_well_formed(text)) reject_input("'{}': is no UTF-8", path.string());
  return parse_task(text, path.string());
}

std::vector<Task> read_task_files(std::span<const std::string> paths) {
  std::vector<Task> tasks;
  std::set<std::string> names;
  for (const std::string& path : paths) {
    tasks.push_back(read_task_file(path));
    if (!names.insert(tasks.back().name).second) {
      reject_input("{}: a second task of the name '{}'; its header can name it otherwise", path, tasks.back().name);
    }
  }
  return tasks;
}

}  // namespace kvloom
