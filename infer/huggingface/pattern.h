// What Replace and Split look for: a text, or a regular expression.
#pragma once

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "infer/huggingface/json_node.h"
#include "infer/regex.h"

namespace kvloom::huggingface {

class Pattern {
 public:
  // {"String": ...} or {"Regex": ...}.
  explicit Pattern(const JsonNode& node);
  explicit Pattern(std::string text) : what_(std::move(text)) {}
  explicit Pattern(Regex regex) : what_(std::move(regex)) {}

  // Appends the matches, left to right.
  void find_all(std::string_view text, std::vector<Span>& matches) const;
  std::string replaced(std::string_view text, std::string_view content) const;

 private:
  std::variant<std::string, Regex> what_;
};

}  // namespace kvloom::huggingface
