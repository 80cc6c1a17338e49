#include "tests/support/ptx/statements.h"

namespace kvloom::ptx {

std::string_view trimmed(std::string_view text) {
  const std::size_t first = text.find_first_not_of(" \t\n");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t\n") - first + 1);
}

std::vector<std::string> split(std::string_view text, char separator) {
  std::vector<std::string> parts;
  int depth = 0;
  std::size_t begin = 0;
  for (std::size_t i = 0; i <= text.size(); ++i) {
    if (i < text.size() && (text[i] == '{' || text[i] == '[')) ++depth;
    if (i < text.size() && (text[i] == '}' || text[i] == ']')) --depth;
    if (i < text.size() && (depth > 0 || text[i] != separator)) continue;
    parts.emplace_back(trimmed(text.substr(begin, i - begin)));
    begin = i + 1;
  }
  if (parts.size() == 1 && parts[0].empty()) parts.clear();
  return parts;
}

std::vector<Statement> statements_of(const std::vector<std::string>& lines) {
  std::vector<Statement> statements;
  std::string text;
  int start = 0;
  const auto end = [&] {
    if (!trimmed(text).empty()) statements.push_back({std::string(trimmed(text)), start});
    text.clear();
  };
  for (std::size_t number = 0; number < lines.size(); ++number) {
    const std::string line = lines[number].substr(0, lines[number].find("//"));
    for (const char c : line) {
      if (trimmed(text).empty()) start = static_cast<int>(number);
      const bool is_vector = !trimmed(text).empty() && !trimmed(text).starts_with('.');
      if (c == ';') {
        end();
      } else if (c == ':' && trimmed(text).starts_with('$')) {
        text += c;
        end();
      } else if ((c == '{' || c == '}') && !is_vector) {
        end();
        statements.push_back({std::string(1, c), static_cast<int>(number)});
      } else {
        text += c;
      }
    }
    text += ' ';
    if (trimmed(text).starts_with(".version") || trimmed(text).starts_with(".target") ||
        trimmed(text).starts_with(".address_size")) {
      end();
    }
  }
  end();
  return statements;
}

}  // namespace kvloom::ptx
