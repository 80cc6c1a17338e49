#include "infer/text/jinja_parser.h"

#include <algorithm>
#include <utility>

namespace kvloom::jinja {
namespace {

constexpr int kDeepestBlocks = 60;

using Names = std::initializer_list<std::string_view>;

class StatementParser {
 public:
  explicit StatementParser(std::string_view source) : tokens_(lex(source)), expressions_(tokens_) {}

  std::vector<Statement> run() {
    std::vector<Statement> all = statements({}, 1);
    if (!tokens_.is(TokenKind::kEnd)) tokens_.reject("the end of the template");
    return all;
  }

 private:
  // Up to a block whose tag is one of `ends`; its tag is the token that comes then. With none, up to the end.
  std::vector<Statement> statements(Names ends, int begin) {
    if (++depth_ > kDeepestBlocks) reject_syntax(begin, "blocks are nested more than {} deep", kDeepestBlocks);
    std::vector<Statement> all;
    while (!tokens_.is(TokenKind::kEnd)) {
      const int line = tokens_.now().line;
      if (tokens_.is(TokenKind::kText)) {
        all.push_back({.kind = StatementKind::kText, .line = line, .name = tokens_.next().text});
      } else if (tokens_.is(TokenKind::kVariableBegin)) {
        tokens_.next();
        all.push_back(
            {.kind = StatementKind::kOutput, .line = line, .value = expressions_.tuple(Conditional::kAllowed)});
        if (!tokens_.is(TokenKind::kVariableEnd)) tokens_.reject("'}}'");
        tokens_.next();
      } else {
        tokens_.next();
        const Token& tag = tokens_.now();
        if (tag.kind != TokenKind::kName) tokens_.reject("a tag's name");
        if (std::ranges::find(ends, tag.text) != ends.end()) {
          --depth_;
          return all;
        }
        all.push_back(statement());
        end_tag();
      }
    }
    if (ends.size() > 0) reject_syntax(begin, "a block has no end; right is '{}'", *(ends.end() - 1));
    --depth_;
    return all;
  }

  void end_tag() {
    if (!tokens_.is(TokenKind::kBlockEnd)) tokens_.reject("'%}'");
    tokens_.next();
  }

  // Behind the opening tag: the statements up to `end`, whose tag is read up to its own end.
  std::vector<Statement> body_until(std::string_view end, int line) {
    end_tag();
    std::vector<Statement> body = statements({end}, line);
    tokens_.next();
    return body;
  }
  // The same for what no loop's break or continue goes through.
  std::vector<Statement> closed_body_until(std::string_view end, int line) {
    const int loops = std::exchange(loops_, 0);
    std::vector<Statement> body = body_until(end, line);
    loops_ = loops;
    return body;
  }

  Statement statement() {
    const Token tag = tokens_.next();
    const std::string& name = tag.text;
    if (name == "for") return for_statement(tag.line);
    if (name == "if") return if_statement(tag.line);
    if (name == "set") return set_statement(tag.line);
    if (name == "macro") return macro_statement(tag.line);
    if (name == "call") return call_statement(tag.line);
    if (name == "with") return with_statement(tag.line);
    if (name == "filter") return filter_statement(tag.line);
    if (name == "generation") {
      return {.kind = StatementKind::kScope, .line = tag.line, .body = closed_body_until("endgeneration", tag.line)};
    }
    if (name == "print") {
      return {.kind = StatementKind::kOutput, .line = tag.line, .value = expressions_.tuple(Conditional::kAllowed)};
    }
    if (name == "break" || name == "continue") {
      if (loops_ == 0) reject_syntax(tag.line, "'{}' outside of a loop", name);
      return {.kind = name == "break" ? StatementKind::kBreak : StatementKind::kContinue, .line = tag.line};
    }
    for (const char* known : {"include", "import", "from", "extends", "block", "autoescape"}) {
      if (name == known) reject_syntax(tag.line, "the tag '{}' is not supported", name);
    }
    reject_syntax(tag.line, "unknown tag '{}'", name);
  }

  Statement for_statement(int line) {
    Statement made{.kind = StatementKind::kFor, .line = line};
    made.target = expressions_.target("in");
    tokens_.expect_name("in");
    made.value = expressions_.tuple(Conditional::kRefused, "recursive");
    if (tokens_.skip_name("if")) made.condition = expressions_.expression();
    made.recursive = tokens_.skip_name("recursive");
    end_tag();
    ++loops_;
    made.body = statements({"else", "endfor"}, line);
    --loops_;
    if (tokens_.next().text == "else") made.otherwise = body_until("endfor", line);
    return made;
  }

  Statement if_statement(int line) {
    Statement made{.kind = StatementKind::kIf, .line = line};
    std::string tag = "elif";
    while (tag == "elif") {
      Branch branch{.condition = expressions_.tuple(Conditional::kRefused), .body = {}};
      end_tag();
      branch.body = statements({"elif", "else", "endif"}, line);
      made.branches.push_back(std::move(branch));
      tag = tokens_.next().text;
    }
    if (tag == "else") made.otherwise = body_until("endif", line);
    return made;
  }

  Statement set_statement(int line) {
    Statement made{.kind = StatementKind::kSet, .line = line};
    made.target = expressions_.target();
    if (tokens_.skip_operator("=")) {
      made.value = expressions_.tuple(Conditional::kAllowed);
      return made;
    }
    made.kind = StatementKind::kSetBlock;
    made.value = expressions_.filters(block_text(line), ExpressionParser::Bar::kFirst);
    made.body = closed_body_until("endset", line);
    return made;
  }

  static Expression block_text(int line) { return {.kind = ExpressionKind::kName, .line = line, .name = kBlockText}; }

  void parameters(Statement& made) {
    tokens_.expect_operator("(");
    while (!tokens_.is_operator(")")) {
      if (!made.parameters.empty()) tokens_.expect_operator(",");
      const int line = tokens_.now().line;
      Parameter parameter{.name = tokens_.expect_any_name(), .otherwise = {}};
      if (tokens_.skip_operator("=")) {
        parameter.otherwise = expressions_.expression();
      } else if (!made.parameters.empty() && made.parameters.back().otherwise.has_value()) {
        reject_syntax(line, "a parameter without a default stands behind one with a default");
      }
      made.parameters.push_back(std::move(parameter));
    }
    tokens_.expect_operator(")");
  }

  Statement macro_statement(int line) {
    Statement made{.kind = StatementKind::kMacro, .line = line, .name = tokens_.expect_any_name()};
    parameters(made);
    made.body = closed_body_until("endmacro", line);
    return made;
  }

  Statement call_statement(int line) {
    Statement made{.kind = StatementKind::kCallBlock, .line = line, .name = "caller"};
    if (tokens_.is_operator("(")) parameters(made);
    made.value = expressions_.expression();
    if (made.value.kind != ExpressionKind::kCall) reject_syntax(line, "'call' wants the call of a macro");
    made.body = closed_body_until("endcall", line);
    return made;
  }

  Statement with_statement(int line) {
    Statement made{.kind = StatementKind::kWith, .line = line};
    while (!tokens_.is(TokenKind::kBlockEnd)) {
      if (!made.assignments.empty()) tokens_.expect_operator(",");
      Statement set{.kind = StatementKind::kSet, .line = tokens_.now().line};
      set.target = expressions_.target("=");
      tokens_.expect_operator("=");
      set.value = expressions_.expression();
      made.assignments.push_back(std::move(set));
    }
    made.body = body_until("endwith", line);
    return made;
  }

  Statement filter_statement(int line) {
    Statement made{.kind = StatementKind::kFilterBlock, .line = line};
    made.value = expressions_.filters(block_text(line), ExpressionParser::Bar::kNone);
    made.body = closed_body_until("endfilter", line);
    return made;
  }

  TokenStream tokens_;
  ExpressionParser expressions_;
  int depth_ = 0;
  int loops_ = 0;
};

}  // namespace

bool TokenStream::skip_name(std::string_view name) {
  const bool skips = is_name(name);
  if (skips) next();
  return skips;
}

bool TokenStream::skip_operator(std::string_view text) {
  const bool skips = is_operator(text);
  if (skips) next();
  return skips;
}

void TokenStream::expect_name(std::string_view name) {
  if (!skip_name(name)) reject(fmt::format("'{}'", name));
}

void TokenStream::expect_operator(std::string_view text) {
  if (!skip_operator(text)) reject(fmt::format("'{}'", text));
}

std::string TokenStream::expect_any_name() {
  if (!is(TokenKind::kName)) reject("a name");
  return next().text;
}

void TokenStream::reject(std::string_view right) const {
  const Token& token = now();
  switch (token.kind) {
    case TokenKind::kEnd:
      reject_syntax(token.line, "the template ends; right is {}", right);
    case TokenKind::kBlockEnd:
    case TokenKind::kVariableEnd:
      reject_syntax(token.line, "the tag ends; right is {}", right);
    default:
      reject_syntax(token.line, "unexpected '{}'; right is {}", token.text.substr(0, 40), right);
  }
}

std::vector<Statement> parse(std::string_view source) { return StatementParser(source).run(); }

}  // namespace kvloom::jinja
