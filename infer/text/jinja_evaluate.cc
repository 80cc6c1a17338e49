// The interpreter's expressions.
#include "infer/text/jinja_interpreter.h"

namespace kvloom::jinja {

Value Interpreter::evaluate(const Expression& expression, const FramePtr& frame) {
  if (expression.kind == ExpressionKind::kConstant) return expression.value;
  charge(1);
  const Descent descent(*this);
  return evaluate_one(expression, frame);
}

Value Interpreter::evaluate_one(const Expression& expression, const FramePtr& frame) {
  const auto operand = [&](std::size_t i) { return evaluate(expression.operands[i], frame); };
  line_ = expression.line;
  switch (expression.kind) {
    case ExpressionKind::kConstant:
      return expression.value;
    case ExpressionKind::kName:
      return name_of(expression, frame);
    case ExpressionKind::kList:
      return list(operands_of(expression, frame));
    case ExpressionKind::kTuple:
      return list(operands_of(expression, frame), SequenceKind::kTuple);
    case ExpressionKind::kDict:
      return dict_of(expression, frame);
    case ExpressionKind::kAttribute: {
      const Value value = operand(0);
      line_ = expression.line;
      return attribute_of(*this, value, expression.name);
    }
    case ExpressionKind::kItem:
    case ExpressionKind::kSlice:
    case ExpressionKind::kBinary: {
      const List values = operands_of(expression, frame);
      line_ = expression.line;
      if (expression.kind == ExpressionKind::kItem) return item_of(*this, values[0], values[1]);
      if (expression.kind == ExpressionKind::kBinary) return binary(*this, expression.name, values[0], values[1]);
      return slice_of(*this, values[0], values[1], values[2], values[3]);
    }
    case ExpressionKind::kCall:
      return call_of(expression, frame);
    case ExpressionKind::kFilter:
      return filter_of(expression, frame);
    case ExpressionKind::kTest:
      return test_of(expression, frame);
    case ExpressionKind::kUnary:
      return unary_of(expression, frame);
    case ExpressionKind::kConcatenate:
      return concatenation_of(expression, frame);
    case ExpressionKind::kAnd:
    case ExpressionKind::kOr: {
      Value left = operand(0);
      return truth(left) == (expression.kind == ExpressionKind::kOr) ? left : operand(1);
    }
    case ExpressionKind::kCompare:
      return comparison_of(expression, frame);
    case ExpressionKind::kConditional:
      return operand(truth(operand(1)) ? 0 : 2);
  }
  return {};
}

List Interpreter::operands_of(const Expression& expression, const FramePtr& frame) {
  List values;
  values.reserve(expression.operands.size());
  for (const Expression& operand : expression.operands) values.push_back(evaluate(operand, frame));
  return values;
}

Value Interpreter::name_of(const Expression& expression, const FramePtr& frame) {
  if (const Value* found = frame->find(expression.name)) return *found;
  if (const std::optional<Value> known = find_function(*this, expression.name)) return *known;
  return undefined(fmt::format("'{}' is undefined", expression.name));
}

Value Interpreter::dict_of(const Expression& expression, const FramePtr& frame) {
  Dict dict;
  for (std::size_t i = 0; i < expression.operands.size(); i += 2) {
    const Value key = evaluate(expression.operands[i], frame);
    dict.set(key, evaluate(expression.operands[i + 1], frame));
  }
  charge(1 + 4 * dict.entries().size());
  return make_dict(std::move(dict));
}

Arguments Interpreter::arguments_of(const Expression& expression, const FramePtr& frame) {
  Arguments arguments;
  const std::size_t named = expression.operands.size() - expression.names.size();
  for (std::size_t i = 1; i < expression.operands.size(); ++i) {
    Value value = evaluate(expression.operands[i], frame);
    if (i < named) {
      arguments.positional.push_back(std::move(value));
    } else {
      arguments.named.emplace_back(expression.names[i - named], std::move(value));
    }
  }
  line_ = expression.line;
  return arguments;
}

Value Interpreter::call_of(const Expression& expression, const FramePtr& frame) {
  const Value callee = evaluate(expression.operands.front(), frame);
  return call(callee, arguments_of(expression, frame));
}

Value Interpreter::filter_of(const Expression& expression, const FramePtr& frame) {
  const Builtin filter = find_filter(expression.name);
  if (filter == nullptr) fault("No filter named '{}'.", expression.name);
  const Value value = evaluate(expression.operands.front(), frame);
  return filter(*this, value, arguments_of(expression, frame));
}

Value Interpreter::test_of(const Expression& expression, const FramePtr& frame) {
  const Builtin test = find_test(expression.name);
  if (test == nullptr) fault("No test named '{}'.", expression.name);
  const Value value = evaluate(expression.operands.front(), frame);
  return test(*this, value, arguments_of(expression, frame));
}

Value Interpreter::unary_of(const Expression& expression, const FramePtr& frame) {
  const Value value = evaluate(expression.operands.front(), frame);
  line_ = expression.line;
  if (expression.name == "not") return !truth(value);
  const Value opposite = negated(value);
  return expression.name == "-" ? opposite : negated(opposite);
}

Value Interpreter::concatenation_of(const Expression& expression, const FramePtr& frame) {
  std::string all;
  for (const Expression& operand : expression.operands) {
    all += shown(*this, evaluate(operand, frame));
    check_bytes(all.size());
  }
  return text(std::move(all));
}

Value Interpreter::comparison_of(const Expression& expression, const FramePtr& frame) {
  Value left = evaluate(expression.operands.front(), frame);
  for (std::size_t i = 0; i < expression.names.size(); ++i) {
    Value right = evaluate(expression.operands[i + 1], frame);
    line_ = expression.line;
    if (!compare(*this, expression.names[i], left, right)) return false;
    left = std::move(right);
  }
  return true;
}

}  // namespace kvloom::jinja
