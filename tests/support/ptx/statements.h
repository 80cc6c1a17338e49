// PTX as text: statements, and the operands within them.
#pragma once

#include <cstddef>
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

std::size_t size_of_type(std::string_view type);  // ".u32" or "u32"; bytes

// ".align 8 .b8 name[128]" or ".u64 name": of shared and local memory and of parameters.
struct Variable {
  std::string name;
  std::size_t alignment;
  std::size_t bytes;
};
Variable variable_of(const std::string& text);

}  // namespace kvloom::ptx
