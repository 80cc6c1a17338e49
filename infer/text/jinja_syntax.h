// A Jinja template as a tree.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "infer/text/jinja_value.h"

namespace kvloom::jinja {

enum class ExpressionKind {
  kConstant,     // value
  kName,         // name
  kList,         // operands
  kTuple,        // operands
  kDict,         // operands: key, value, key, value, ...
  kAttribute,    // operand.name
  kItem,         // operand[operand]
  kSlice,        // operand[operand:operand:operand], none where one is not given
  kCall,         // operand(arguments)
  kFilter,       // operand | name(arguments)
  kTest,         // operand is name(arguments)
  kUnary,        // name ("-", "+", "not") operand
  kBinary,       // operand name ("+", "-", "*", "/", "//", "%", "**") operand
  kConcatenate,  // operand ~ operand
  kAnd,
  kOr,
  kCompare,      // operand names[0] operand names[1] operand ...: "==", "!=", "<", "<=", ">", ">=", "in", "not in"
  kConditional,  // operand if operand else operand: in the order value, condition, other
};

struct Expression {
  ExpressionKind kind = ExpressionKind::kConstant;
  int line = 0;
  int depth = 1;
  std::string name;
  Value value;
  std::vector<Expression> operands;  // then the positional arguments
  std::vector<std::string> names;    // of named arguments, whose values are the last operands; or of comparisons
};

enum class StatementKind {
  kText,         // name
  kOutput,       // value
  kFor,          // for target in value if condition: body; otherwise where nothing came
  kIf,           // branches, otherwise
  kSet,          // target = value
  kSetBlock,     // target = body through the filters of value
  kMacro,        // name, parameters, body
  kCallBlock,    // value, a call that is given `caller`: parameters, body
  kFilterBlock,  // body through the filters of value
  kWith,         // assignments, body
  kScope,        // body: transformers' generation block
  kBreak,
  kContinue,
};

struct Parameter {
  std::string name;
  std::optional<Expression> otherwise;
};

struct Branch;

struct Statement {
  StatementKind kind = StatementKind::kText;
  int line = 0;
  std::string name;
  Expression target;  // a name, an attribute of a name, or a tuple of names
  Expression value;
  std::optional<Expression> condition;
  bool recursive = false;
  std::vector<Parameter> parameters;
  std::vector<Branch> branches;
  std::vector<Statement> assignments;
  std::vector<Statement> body;
  std::vector<Statement> otherwise;
};

struct Branch {
  Expression condition;
  std::vector<Statement> body;
};

// The name, which no template can write, of what a filter block or a set block holds.
inline constexpr const char* kBlockText = "block text";

}  // namespace kvloom::jinja
