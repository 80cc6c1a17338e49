// From a Jinja template's text to its tree.
#pragma once

#include <string_view>
#include <vector>

#include "infer/text/jinja_lexer.h"
#include "infer/text/jinja_syntax.h"

namespace kvloom::jinja {

// Throws InputError, naming the line, for what is no template, for a tag that is not supported (include, import,
// extends, block, autoescape), and for expressions or blocks that are nested too deeply.
std::vector<Statement> parse(std::string_view source);

// The tokens of a template, one after the other.
class TokenStream {
 public:
  explicit TokenStream(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  const Token& now() const { return tokens_[at_]; }
  const Token& ahead() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  Token next() { return at_ + 1 < tokens_.size() ? tokens_[at_++] : tokens_[at_]; }
  bool is(TokenKind kind) const { return now().kind == kind; }
  bool is_name(std::string_view name) const { return is(TokenKind::kName) && now().text == name; }
  bool is_operator(std::string_view text) const { return is(TokenKind::kOperator) && now().text == text; }
  bool skip_name(std::string_view name);
  bool skip_operator(std::string_view text);
  void expect_name(std::string_view name);
  void expect_operator(std::string_view text);
  std::string expect_any_name();
  [[noreturn]] void reject(std::string_view right) const;  // the token here

 private:
  std::vector<Token> tokens_;
  std::size_t at_ = 0;
};

enum class Conditional { kAllowed, kRefused };  // whether "a if b else c" may stand there

// Expressions, with the grammar and the precedence of jinja2 3.1.
class ExpressionParser {
 public:
  explicit ExpressionParser(TokenStream& tokens) : tokens_(tokens) {}

  Expression expression(Conditional conditional = Conditional::kAllowed);
  // One expression, or several with commas between them; `end` is a name that ends it beside what ends a tag.
  Expression tuple(Conditional conditional, std::string_view end = {});
  // Names to assign to: one, several, or an attribute of one.
  Expression target(std::string_view end = {});
  // "| name(arguments) | ..." behind `operand`; without the first bar where `bar` says that there is none.
  enum class Bar { kFirst, kNone };
  Expression filters(Expression operand, Bar bar);

 private:
  Expression conditional();
  Expression disjunction();
  Expression conjunction();
  Expression negation();
  Expression comparison();
  Expression sum();
  Expression concatenation();
  Expression product();
  Expression power();
  enum class Filters { kYes, kNo };
  Expression unary(Filters filters);
  Expression primary();
  Expression postfix(Expression operand);
  Expression filters_and_tests(Expression operand);
  Expression parenthesis();
  Expression list();
  Expression dict();
  Expression subscript(Expression operand);
  Expression test(Expression operand);
  void arguments(Expression& call);
  bool ends_tuple(std::string_view end) const;
  std::string dotted_name();

  TokenStream& tokens_;
  int depth_ = 0;
};

}  // namespace kvloom::jinja
