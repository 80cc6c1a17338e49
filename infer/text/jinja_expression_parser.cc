// Expressions: the operators, from the weakest to the strongest.
#include <algorithm>

#include "infer/text/jinja_nodes.h"

namespace kvloom::jinja {

Expression ExpressionParser::expression(Conditional conditional) {
  const Nesting nesting(depth_, tokens_.now().line);
  return conditional == Conditional::kAllowed ? this->conditional() : disjunction();
}

bool ExpressionParser::ends_tuple(std::string_view end) const {
  return tokens_.is(TokenKind::kVariableEnd) || tokens_.is(TokenKind::kBlockEnd) || tokens_.is_operator(")") ||
         (!end.empty() && tokens_.is_name(end));
}

Expression ExpressionParser::tuple(Conditional conditional, std::string_view end) {
  const int line = tokens_.now().line;
  std::vector<Expression> items;
  bool is_tuple = false;
  while (!ends_tuple(end)) {
    items.push_back(expression(conditional));
    if (!tokens_.skip_operator(",")) break;
    is_tuple = true;
  }
  if (items.empty()) tokens_.reject("an expression");
  if (!is_tuple) return std::move(items.front());
  return node(ExpressionKind::kTuple, line, {}, std::move(items));
}

Expression ExpressionParser::target(std::string_view end) {
  const int line = tokens_.now().line;
  std::vector<Expression> names;
  bool is_tuple = false;
  const bool parenthesis = tokens_.skip_operator("(");
  while (!(is_tuple && (ends_tuple(end) || tokens_.is_operator("=")))) {
    const int here = tokens_.now().line;
    Expression name = node(ExpressionKind::kName, here, tokens_.expect_any_name(), {});
    for (const char* reserved : {"true", "false", "none", "True", "False", "None"}) {
      if (name.name == reserved) reject_syntax(here, "cannot assign to '{}'", reserved);
    }
    if (end.empty() && tokens_.skip_operator(".")) {
      name = node_of(ExpressionKind::kAttribute, here, tokens_.expect_any_name(), std::move(name));
    }
    names.push_back(std::move(name));
    if (!tokens_.skip_operator(",")) break;
    is_tuple = true;
  }
  if (parenthesis) tokens_.expect_operator(")");
  if (!is_tuple) return std::move(names.front());
  return node(ExpressionKind::kTuple, line, {}, std::move(names));
}

Expression ExpressionParser::conditional() {
  Expression value = disjunction();
  while (tokens_.is_name("if")) {
    const int line = tokens_.next().line;
    Expression condition = disjunction();
    const Nesting nesting(depth_, line);
    Expression other = tokens_.skip_name("else")
                           ? conditional()
                           : constant(line, undefined(fmt::format("the inline if-expression on line {} evaluated to "
                                                                  "false and no else section was defined.",
                                                                  line)));
    value = node_of(ExpressionKind::kConditional, line, {}, std::move(value), std::move(condition), std::move(other));
  }
  return value;
}

Expression ExpressionParser::disjunction() {
  Expression left = conjunction();
  while (tokens_.is_name("or")) {
    const int line = tokens_.next().line;
    left = node_of(ExpressionKind::kOr, line, {}, std::move(left), conjunction());
  }
  return left;
}

Expression ExpressionParser::conjunction() {
  Expression left = negation();
  while (tokens_.is_name("and")) {
    const int line = tokens_.next().line;
    left = node_of(ExpressionKind::kAnd, line, {}, std::move(left), negation());
  }
  return left;
}

Expression ExpressionParser::negation() {
  if (!tokens_.is_name("not")) return comparison();
  const int line = tokens_.next().line;
  const Nesting nesting(depth_, line);
  return node_of(ExpressionKind::kUnary, line, "not", negation());
}

Expression ExpressionParser::comparison() {
  constexpr std::string_view kOperators[] = {"==", "!=", "<", "<=", ">", ">="};
  Expression compared = node_of(ExpressionKind::kCompare, tokens_.now().line, {}, sum());
  while (true) {
    if (tokens_.is(TokenKind::kOperator) && std::ranges::count(kOperators, tokens_.now().text) > 0) {
      compared.names.push_back(tokens_.next().text);
    } else if (tokens_.skip_name("in")) {
      compared.names.push_back("in");
    } else if (tokens_.is_name("not") && tokens_.ahead().kind == TokenKind::kName && tokens_.ahead().text == "in") {
      tokens_.next();
      tokens_.next();
      compared.names.push_back("not in");
    } else {
      break;
    }
    add_operand(compared, sum());
  }
  if (!compared.names.empty()) return compared;
  return std::move(compared.operands.front());
}

Expression ExpressionParser::sum() {
  Expression left = concatenation();
  while (tokens_.is_operator("+") || tokens_.is_operator("-")) {
    const Token token = tokens_.next();
    left = node_of(ExpressionKind::kBinary, token.line, token.text, std::move(left), concatenation());
  }
  return left;
}

Expression ExpressionParser::concatenation() {
  Expression left = product();
  if (!tokens_.is_operator("~")) return left;
  Expression all = node_of(ExpressionKind::kConcatenate, left.line, {}, std::move(left));
  while (tokens_.skip_operator("~")) add_operand(all, product());
  return all;
}

Expression ExpressionParser::product() {
  Expression left = power();
  while (tokens_.is_operator("*") || tokens_.is_operator("/") || tokens_.is_operator("//") ||
         tokens_.is_operator("%")) {
    const Token token = tokens_.next();
    left = node_of(ExpressionKind::kBinary, token.line, token.text, std::move(left), power());
  }
  return left;
}

Expression ExpressionParser::power() {
  Expression left = unary(Filters::kYes);
  while (tokens_.is_operator("**")) {
    const int line = tokens_.next().line;
    left = node_of(ExpressionKind::kBinary, line, "**", std::move(left), unary(Filters::kYes));
  }
  return left;
}

Expression ExpressionParser::unary(Filters filters) {
  const int line = tokens_.now().line;
  const Nesting nesting(depth_, line);
  Expression operand;
  if (tokens_.skip_operator("-")) {
    operand = node_of(ExpressionKind::kUnary, line, "-", unary(Filters::kNo));
  } else if (tokens_.skip_operator("+")) {
    operand = node_of(ExpressionKind::kUnary, line, "+", unary(Filters::kNo));
  } else {
    operand = primary();
  }
  operand = postfix(std::move(operand));
  return filters == Filters::kYes ? filters_and_tests(std::move(operand)) : std::move(operand);
}

}  // namespace kvloom::jinja
