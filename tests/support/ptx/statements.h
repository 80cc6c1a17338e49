// PTX as text: statements, and the operands within them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace kvloom::ptx {

struct Statement {
  std::string text;
  int line;  // from 0
};

// What ends in a semicolon, a colon or at a brace, without comments.
std::vector<Statement> statements_of(const std::vector<std::string>& lines);

std::string_view trimmed(std::string_view text);

// At separators that stand outside of braces and brackets.
std::vector<std::string> split(std::string_view text, char separator);

}  // namespace kvloom::ptx
