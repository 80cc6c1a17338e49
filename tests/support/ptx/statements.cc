#include "tests/support/ptx/statements.h"

#include <cstdlib>
#include <sstream>

#include "tests/support/ptx/program.h"

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

std::size_t size_of_type(std::string_view type) {
  if (type.starts_with('.')) type.remove_prefix(1);
  if (type == "pred") return 1;
  return static_cast<std::size_t>(std::atoi(std::string(type.substr(1)).c_str())) / 8;
}

Variable variable_of(const std::string& text) {
  std::vector<std::string> words;
  std::istringstream stream(text);
  for (std::string word; stream >> word;) words.push_back(word);
  std::size_t alignment = 0;
  if (words.size() > 2 && words[0] == ".align") {
    alignment = std::stoul(words[1]);
    words.erase(words.begin(), words.begin() + 2);
  }
  if (words.size() != 2 || !words[0].starts_with('.')) stop("not understood: " + text);
  const std::size_t element = size_of_type(words[0]);
  const std::size_t open = words[1].find('[');
  std::size_t count = 1;
  if (open != std::string::npos) count = words[1][open + 1] == ']' ? 0 : std::stoul(words[1].substr(open + 1));
  return {words[1].substr(0, open), alignment == 0 ? element : alignment, element * count};
}

}  // namespace kvloom::ptx
