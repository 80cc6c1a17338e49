#include "infer/evaluation/datasets.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <optional>
#include <string_view>
#include <utility>

#include "infer/evaluation/json_record.h"
#include "infer/evaluation/records.h"
#include "infer/text/python_text.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kLabelsInAFile = "where answers come in a file of their own, give that with --labels";

// A record and its label, from wherever it came.
class Source {
 public:
  Source(const SourceRecord& record, std::optional<std::string> label)
      : record_(record.fields, record.place), label_(std::move(label)) {}

  const JsonRecord& record() const { return record_; }
  const std::string& place() const { return record_.place(); }
  std::string text(const char* field) const { return record_.text(field); }
  bool has(const char* field) const { return record_.has(field); }

  // The label as text: "1", "true", "B".
  std::string label(const char* field) const {
    if (label_.has_value()) return *label_;
    if (!has(field)) record_.reject(field, fmt::format("is missing; {}", kLabelsInAFile));
    const Json& value = record_.at(field);
    const std::string label(stripped(value.is_string() ? value.get<std::string>() : value.dump()));
    if (label.empty() || label == "null" || label == "-1") {
      record_.reject(field,
                     fmt::format("holds no answer: those of this part are not published; or {}", kLabelsInAFile));
    }
    return label;
  }

  int numbered_label(const char* field, int first, int count) const {
    const std::string text = label(field);
    for (int i = 0; i < count; ++i) {
      if (text == std::to_string(first + i)) return i;
    }
    record_.reject(field, fmt::format("is '{}'; right are {} to {}", text, first, first + count - 1));
  }

 private:
  JsonRecord record_;
  std::optional<std::string> label_;
};

std::string replaced(std::string text, std::string_view what, std::string_view by) {
  for (std::size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + by.size())) {
    text.replace(at, what.size(), by);
  }
  return text;
}

// Python's re.sub(r"\[.*?\]", "", text).
std::string without_brackets(const std::string& text) {
  std::string result;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = text[at] == '[' ? text.find_first_of("]\n", at) : std::string::npos;
    if (end != std::string::npos && text[end] == ']') {
      at = end + 1;
    } else {
      result += text[at++];
    }
  }
  return result;
}

// WikiHow's headings and markup leave the text.
std::string hellaswag_text(const std::string& text) {
  return replaced(without_brackets(replaced(std::string(stripped(text)), " [title]", ". ")), "  ", " ");
}

Json hellaswag_item(const Source& source) {
  const std::vector<std::string> endings = source.record().texts("endings");
  Json choices = Json::array();
  for (const std::string& ending : endings) choices.push_back(hellaswag_text(ending));
  const std::string context = source.text("ctx_a") + " " + capitalized(source.text("ctx_b"));
  return {{"context", hellaswag_text(source.text("activity_label") + ": " + context)},
          {"choices", choices},
          {"answer", source.numbered_label("label", 0, static_cast<int>(endings.size()))}};
}

Json winogrande_item(const Source& source) {
  const std::string sentence = source.text("sentence");
  const std::size_t blank = sentence.find('_');
  if (blank == std::string::npos) source.record().reject("sentence", "has no blank '_'");
  Json contexts = Json::array();
  for (const char* option : {"option1", "option2"}) contexts.push_back(sentence.substr(0, blank) + source.text(option));
  return {{"contexts", contexts},
          {"continuation", std::string(stripped(std::string_view(sentence).substr(blank + 1)))},
          {"answer", source.numbered_label("answer", 1, 2)}};
}

Json piqa_item(const Source& source) {
  return {{"context", "Question: " + source.text("goal") + "\nAnswer:"},
          {"choices", {source.text("sol1"), source.text("sol2")}},
          {"answer", source.numbered_label("label", 0, 2)}};
}

Json boolq_item(const Source& source) {
  const char* field = source.has("answer") ? "answer" : "label";
  std::string label = source.label(field);
  std::ranges::transform(label, label.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  const bool yes = label == "true" || label == "1" || label == "yes";
  if (!yes && label != "false" && label != "0" && label != "no") {
    source.record().reject(field, fmt::format("is '{}'; right are true and false", label));
  }
  return {{"context", source.text("passage") + "\nQuestion: " + source.text("question") + "?\nAnswer:"},
          {"choices", {"no", "yes"}},
          {"answer", yes ? 1 : 0}};
}

// A question whose choices have letters or numbers.
struct Lettered {
  std::string stem;
  std::vector<std::string> labels;
  std::vector<std::string> choices;
};

// "stem (A) one (B) two", or with numbers.
Lettered cut_lettered(const std::string& text, const Source& source, const char* field) {
  for (const std::string_view labels : {"ABCDEFGH", "12345678"}) {
    Lettered question;
    std::size_t begin = text.find(fmt::format("({})", labels.front()));
    if (begin == std::string::npos) continue;
    question.stem = stripped(std::string_view(text).substr(0, begin));
    for (std::size_t i = 0; begin != std::string::npos; ++i) {
      const std::size_t next =
          i + 1 < labels.size() ? text.find(fmt::format("({})", labels[i + 1]), begin) : std::string::npos;
      const std::size_t end = next == std::string::npos ? text.size() : next;
      question.labels.emplace_back(1, labels[i]);
      question.choices.emplace_back(stripped(std::string_view(text).substr(begin + 3, end - begin - 3)));
      begin = next;
    }
    return question;
  }
  source.record().reject(field, "has no choices (A), (B), ...");
}

// {"text": [..], "label": [..]}, or a list of {"text", "label"}.
void take_choices(const JsonRecord& record, Lettered& question) {
  const Json& choices = record.at("choices");
  if (choices.is_object()) {
    const JsonRecord lists = record.object("choices");
    question.choices = lists.texts("text");
    question.labels = lists.texts("label");
    return;
  }
  if (!choices.is_array()) record.reject("choices", "is neither a list nor an object of lists");
  for (const Json& choice : choices) {
    if (!choice.is_object()) record.reject("choices", "holds no object of text and label");
    const JsonRecord one(choice, record.place() + ": choices");
    question.choices.push_back(one.text("text"));
    question.labels.push_back(one.text("label"));
  }
}

// The four forms that ARC and OpenBookQA come in.
Lettered lettered_question(const Source& source) {
  const JsonRecord& record = source.record();
  if (source.has("Question Stem")) {
    Lettered question = cut_lettered(source.text("Choices"), source, "Choices");
    question.stem = source.text("Question Stem");
    return question;
  }
  Lettered question;
  if (source.has("question") && record.at("question").is_object()) {
    const JsonRecord inner = record.object("question");
    question.stem = inner.text("stem");
    take_choices(inner, question);
    return question;
  }
  const char* stem = source.has("question_stem") ? "question_stem" : "question";
  if (!source.has("choices")) return cut_lettered(source.text(stem), source, stem);
  question.stem = source.text(stem);
  take_choices(record, question);
  return question;
}

int lettered_answer(const Source& source, const Lettered& question) {
  const char* field = source.has("Answer Key") ? "Answer Key" : source.has("AnswerKey") ? "AnswerKey" : "answerKey";
  const std::string label = source.label(field);
  if (question.labels.size() != question.choices.size()) source.record().reject("choices", "have not a label each");
  const auto found = std::ranges::find(question.labels, label);
  if (found != question.labels.end()) return static_cast<int>(found - question.labels.begin());
  source.record().reject(field, fmt::format("is '{}'; right are {}", label, fmt::join(question.labels, ", ")));
}

Json arc_item(const Source& source) {
  const Lettered question = lettered_question(source);
  return {{"context", "Question: " + question.stem + "\nAnswer:"},
          {"choices", question.choices},
          {"answer", lettered_answer(source, question)}};
}

Json openbookqa_item(const Source& source) {
  const Lettered question = lettered_question(source);
  return {{"context", question.stem}, {"choices", question.choices}, {"answer", lettered_answer(source, question)}};
}

Json lambada_item(const Source& source) {
  const std::string text = source.text("text");
  const std::size_t space = text.find_last_of(' ');
  const std::size_t last = space == std::string::npos ? 0 : space + 1;
  return {{"context", space == std::string::npos ? "" : text.substr(0, space)}, {"target", " " + text.substr(last)}};
}

struct Dataset {
  std::string_view name;
  Json (*item)(const Source&);
  std::vector<const char*> metrics;  // those that the harness's task reports
  double version;                    // of the harness's task
};

const std::array<Dataset, 8>& datasets() {
  static const std::array<Dataset, 8> all = {{{"hellaswag", hellaswag_item, {"acc", "acc_norm"}, 1.0},
                                              {"openbookqa", openbookqa_item, {"acc", "acc_norm"}, 1.0},
                                              {"winogrande", winogrande_item, {"acc"}, 1.0},
                                              {"arc_easy", arc_item, {"acc", "acc_norm"}, 1.0},
                                              {"arc_challenge", arc_item, {"acc", "acc_norm"}, 1.0},
                                              {"boolq", boolq_item, {"acc"}, 2.0},
                                              {"piqa", piqa_item, {"acc", "acc_norm"}, 1.0},
                                              {"lambada", lambada_item, {"perplexity", "acc"}, 1.0}}};
  return all;
}

}  // namespace

std::vector<std::string> dataset_names() {
  std::vector<std::string> names;
  for (const Dataset& dataset : datasets()) names.emplace_back(dataset.name);
  return names;
}

std::string make_dataset_task(const std::string& name, const DatasetSource& source) {
  const auto dataset = std::ranges::find(datasets(), name, &Dataset::name);
  if (dataset == datasets().end()) {
    reject_input("data set '{}'; right are {}", name, fmt::join(dataset_names(), ", "));
  }
  const std::vector<SourceRecord> records = read_records(source.records);
  std::vector<std::string> labels;
  if (!source.labels.empty()) {
    labels = read_labels(source.labels);
    if (labels.size() != records.size()) {
      reject_input("'{}' has {} labels; '{}' has {} records", source.labels.string(), labels.size(),
                   source.records.string(), records.size());
    }
  }
  std::string text = Json{{"task", name}, {"metrics", dataset->metrics}, {"version", dataset->version}}.dump() + "\n";
  for (std::size_t i = 0; i < records.size(); ++i) {
    std::optional<std::string> label;
    if (!labels.empty()) label = labels[i];
    text += dataset->item(Source(records[i], std::move(label))).dump() + "\n";
  }
  return text;
}

}  // namespace kvloom
