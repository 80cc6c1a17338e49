// What both halves of the parser of expressions make nodes with.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "infer/text/jinja_parser.h"

namespace kvloom::jinja {

inline void check_depth(int depth, int line) {
  constexpr int kDeepest = 200;
  if (depth > kDeepest) reject_syntax(line, "an expression is nested more than {} deep", kDeepest);
}

inline Expression node(ExpressionKind kind, int line, std::string name, std::vector<Expression> operands) {
  Expression made{.kind = kind, .line = line, .name = std::move(name)};
  for (const Expression& operand : operands) made.depth = std::max(made.depth, operand.depth + 1);
  check_depth(made.depth, line);
  made.operands = std::move(operands);
  return made;
}

template <typename... Operands>
Expression node_of(ExpressionKind kind, int line, std::string name, Operands... operands) {
  std::vector<Expression> all;
  all.reserve(sizeof...(operands));
  (all.push_back(std::move(operands)), ...);
  return node(kind, line, std::move(name), std::move(all));
}

inline Expression constant(int line, Value value) {
  return {.kind = ExpressionKind::kConstant, .line = line, .value = std::move(value)};
}

inline void add_operand(Expression& made, Expression operand) {
  made.depth = std::max(made.depth, operand.depth + 1);
  check_depth(made.depth, made.line);
  made.operands.push_back(std::move(operand));
}

// Counts how deeply the parser is in itself.
class Nesting {
 public:
  Nesting(int& depth, int line) : depth_(depth) { check_depth(++depth_, line); }
  ~Nesting() { --depth_; }
  Nesting(const Nesting&) = delete;
  Nesting& operator=(const Nesting&) = delete;

 private:
  int& depth_;
};

}  // namespace kvloom::jinja
