#include "infer/huggingface/pattern.h"

#include "infer/huggingface/growth.h"

namespace kvloom::huggingface {
namespace {

std::variant<std::string, Regex> read(const JsonNode& node) {
  if (node.has("String")) {
    const JsonNode text = node.at("String");
    if (text.text().empty()) text.reject("is empty; right is a text to look for");
    return text.text();
  }
  if (!node.has("Regex")) node.reject("has neither 'String' nor 'Regex'");
  const JsonNode regex = node.at("Regex");
  return Regex(regex.text(), regex.place());
}

}  // namespace

Pattern::Pattern(const JsonNode& node) : what_(read(node)) {}

void Pattern::find_all(std::string_view text, std::vector<Span>& matches) const {
  if (const Regex* regex = std::get_if<Regex>(&what_)) return regex->find_all(text, matches);
  const std::string& wanted = std::get<std::string>(what_);
  for (std::size_t at = text.find(wanted); at != std::string_view::npos; at = text.find(wanted, at + wanted.size())) {
    matches.push_back({at, at + wanted.size()});
  }
}

std::string Pattern::replaced(std::string_view text, std::string_view content) const {
  std::vector<Span> matches;
  find_all(text, matches);
  check_growth(text.size(), text.size() + matches.size() * content.size());
  std::string result;
  result.reserve(text.size() + matches.size() * content.size());
  std::size_t copied = 0;
  for (const Span& match : matches) {
    result += text.substr(copied, match.begin - copied);
    result += content;
    copied = match.end;
  }
  result += text.substr(copied);
  return result;
}

}  // namespace kvloom::huggingface
