// Expressions: what operators stand between.
#include <charconv>
#include <cstdlib>

#include "infer/text/jinja_nodes.h"

namespace kvloom::jinja {
namespace {

Value number_of(const Token& token) {
  if (token.kind == TokenKind::kInteger) {
    std::int64_t value = 0;
    const auto [end, error] = std::from_chars(token.text.data(), token.text.data() + token.text.size(), value);
    if (error != std::errc()) reject_syntax(token.line, "the number {} is too large", token.text.substr(0, 40));
    return value;
  }
  return std::strtod(token.text.c_str(), nullptr);  // infinite where it is too large
}

}  // namespace

Expression ExpressionParser::primary() {
  const Token token = tokens_.now();
  if (token.kind == TokenKind::kName) {
    tokens_.next();
    if (token.text == "true" || token.text == "True") return constant(token.line, true);
    if (token.text == "false" || token.text == "False") return constant(token.line, false);
    if (token.text == "none" || token.text == "None") return constant(token.line, Value());
    return node(ExpressionKind::kName, token.line, token.text, {});
  }
  if (token.kind == TokenKind::kString) {
    std::string text;
    while (tokens_.is(TokenKind::kString)) text += tokens_.next().text;
    return constant(token.line, text);
  }
  if (token.kind == TokenKind::kInteger || token.kind == TokenKind::kFloat) {
    return constant(token.line, number_of(tokens_.next()));
  }
  if (tokens_.is_operator("(")) return parenthesis();
  if (tokens_.is_operator("[")) return list();
  if (tokens_.is_operator("{")) return dict();
  tokens_.reject("an expression");
}

Expression ExpressionParser::parenthesis() {
  const int line = tokens_.next().line;
  Expression inner =
      tokens_.is_operator(")") ? node(ExpressionKind::kTuple, line, {}, {}) : tuple(Conditional::kAllowed);
  tokens_.expect_operator(")");
  return inner;
}

Expression ExpressionParser::list() {
  Expression made = node(ExpressionKind::kList, tokens_.next().line, {}, {});
  while (!tokens_.is_operator("]")) {
    if (!made.operands.empty()) tokens_.expect_operator(",");
    if (tokens_.is_operator("]")) break;
    add_operand(made, expression());
  }
  tokens_.expect_operator("]");
  return made;
}

Expression ExpressionParser::dict() {
  Expression made = node(ExpressionKind::kDict, tokens_.next().line, {}, {});
  while (!tokens_.is_operator("}")) {
    if (!made.operands.empty()) tokens_.expect_operator(",");
    if (tokens_.is_operator("}")) break;
    add_operand(made, expression());
    tokens_.expect_operator(":");
    add_operand(made, expression());
  }
  tokens_.expect_operator("}");
  return made;
}

Expression ExpressionParser::postfix(Expression operand) {
  while (true) {
    const int line = tokens_.now().line;
    if (tokens_.skip_operator(".")) {
      if (tokens_.is(TokenKind::kInteger)) {
        operand =
            node_of(ExpressionKind::kItem, line, {}, std::move(operand), constant(line, number_of(tokens_.next())));
      } else {
        operand = node_of(ExpressionKind::kAttribute, line, tokens_.expect_any_name(), std::move(operand));
      }
    } else if (tokens_.skip_operator("[")) {
      operand = subscript(std::move(operand));
    } else if (tokens_.is_operator("(")) {
      operand = node_of(ExpressionKind::kCall, line, {}, std::move(operand));
      arguments(operand);
    } else {
      return operand;
    }
  }
}

// Behind the bracket.
Expression ExpressionParser::subscript(Expression operand) {
  const int line = tokens_.now().line;
  const auto part = [&] {
    const bool absent = tokens_.is_operator(":") || tokens_.is_operator("]");
    return absent ? constant(line, Value()) : expression();
  };
  if (tokens_.is_operator("]")) tokens_.reject("an expression");
  std::vector<Expression> parts;
  parts.push_back(part());
  while (parts.size() < 3 && tokens_.skip_operator(":")) parts.push_back(part());
  tokens_.expect_operator("]");
  if (parts.size() == 1) return node_of(ExpressionKind::kItem, line, {}, std::move(operand), std::move(parts.front()));
  while (parts.size() < 3) parts.push_back(constant(line, Value()));
  return node_of(ExpressionKind::kSlice, line, {}, std::move(operand), std::move(parts[0]), std::move(parts[1]),
                 std::move(parts[2]));
}

void ExpressionParser::arguments(Expression& call) {
  tokens_.expect_operator("(");
  bool first = true;
  while (!tokens_.is_operator(")")) {
    if (!first) tokens_.expect_operator(",");
    if (tokens_.is_operator(")")) break;
    first = false;
    if (tokens_.is_operator("*") || tokens_.is_operator("**")) {
      reject_syntax(tokens_.now().line, "arguments by '{}' are not supported", tokens_.now().text);
    }
    const bool named =
        tokens_.is(TokenKind::kName) && tokens_.ahead().kind == TokenKind::kOperator && tokens_.ahead().text == "=";
    if (named) {
      call.names.push_back(tokens_.next().text);
      tokens_.next();
    } else if (!call.names.empty()) {
      reject_syntax(tokens_.now().line, "a positional argument stands behind a named one");
    }
    add_operand(call, expression());
  }
  tokens_.expect_operator(")");
}

std::string ExpressionParser::dotted_name() {
  std::string name = tokens_.expect_any_name();
  while (tokens_.skip_operator(".")) name += "." + tokens_.expect_any_name();
  return name;
}

Expression ExpressionParser::filters(Expression operand, Bar bar) {
  while (bar == Bar::kNone || tokens_.is_operator("|")) {
    if (bar == Bar::kFirst) tokens_.next();
    bar = Bar::kFirst;
    const int line = tokens_.now().line;
    operand = node_of(ExpressionKind::kFilter, line, dotted_name(), std::move(operand));
    if (tokens_.is_operator("(")) arguments(operand);
  }
  return operand;
}

Expression ExpressionParser::filters_and_tests(Expression operand) {
  while (true) {
    if (tokens_.is_operator("|")) {
      operand = filters(std::move(operand), Bar::kFirst);
    } else if (tokens_.is_name("is")) {
      operand = test(std::move(operand));
    } else if (tokens_.is_operator("(")) {
      operand = node_of(ExpressionKind::kCall, tokens_.now().line, {}, std::move(operand));
      arguments(operand);
    } else {
      return operand;
    }
  }
}

Expression ExpressionParser::test(Expression operand) {
  const int line = tokens_.next().line;
  const bool negated = tokens_.skip_name("not");
  Expression made = node_of(ExpressionKind::kTest, line, dotted_name(), std::move(operand));
  const Token& token = tokens_.now();
  const bool is_word =
      token.kind == TokenKind::kName && token.text != "else" && token.text != "or" && token.text != "and";
  if (tokens_.is_operator("(")) {
    arguments(made);
  } else if (is_word || token.kind == TokenKind::kString || token.kind == TokenKind::kInteger ||
             token.kind == TokenKind::kFloat || tokens_.is_operator("[") || tokens_.is_operator("{")) {
    if (tokens_.is_name("is")) reject_syntax(token.line, "tests with 'is' do not chain");
    add_operand(made, postfix(primary()));
  }
  return negated ? node_of(ExpressionKind::kUnary, line, "not", std::move(made)) : std::move(made);
}

}  // namespace kvloom::jinja
