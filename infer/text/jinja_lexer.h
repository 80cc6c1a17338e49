// A Jinja template as tokens, with white space taken away as transformers sets Jinja up: trim_blocks, lstrip_blocks,
// and no newline at the end.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kernels/error.h"

namespace kvloom::jinja {

enum class TokenKind {
  kText,           // between the tags
  kBlockBegin,     // {%
  kBlockEnd,       // %}
  kVariableBegin,  // {{
  kVariableEnd,    // }}
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd
};

struct Token {
  TokenKind kind;
  std::string text;  // of a string: its value
  int line;
};

// A template that cannot be read, with the line.
template <typename... Args>
[[noreturn]] void reject_syntax(int line, fmt::format_string<Args...> format, Args&&... args) {
  reject_input("line {}: {}", line, fmt::format(format, std::forward<Args>(args)...));
}

// Ends in kEnd. Throws InputError for what is no template.
std::vector<Token> lex(std::string_view source);

}  // namespace kvloom::jinja
