#include "infer/text/jinja_interpreter.h"

#include <algorithm>

#include "infer/text/jinja.h"
#include "infer/text/jinja_objects.h"
#include "infer/text/jinja_parser.h"

namespace kvloom::jinja {

const Value* Frame::find(std::string_view name) const {
  for (const Frame* frame = this; frame != nullptr; frame = frame->outer.get()) {
    const auto found =
        std::ranges::find(frame->names, name, [](const auto& entry) { return std::string_view(entry.first); });
    if (found != frame->names.end()) return &found->second;
  }
  return nullptr;
}

void Frame::set(std::string_view name, Value value) {
  const auto found = std::ranges::find(names, name, [](const auto& entry) { return std::string_view(entry.first); });
  if (found != names.end()) {
    found->second = std::move(value);
  } else {
    names.emplace_back(name, std::move(value));
  }
}

Interpreter::~Interpreter() {
  for (const FramePtr& frame : frames_of_macros_) frame->names.clear();
  for (const std::shared_ptr<Object>& object : kept_) {
    if (auto* space = dynamic_cast<Namespace*>(object.get())) space->clear();
  }
}

void Interpreter::write(std::string& out, const std::string& text) {
  check_bytes(out.size() + text.size());
  charge(1 + text.size() / 8);
  out += text;
}

std::string Interpreter::run(const std::vector<Statement>& statements, const FramePtr& frame) {
  std::string out;
  run(statements, frame, out);
  return out;
}

Flow Interpreter::run(const std::vector<Statement>& statements, const FramePtr& frame, std::string& out) {
  const Descent descent(*this);
  for (const Statement& statement : statements) {
    charge(1);
    line_ = statement.line;
    const Flow flow = run_one(statement, frame, out);
    if (flow != Flow::kOn) return flow;
  }
  return Flow::kOn;
}

Flow Interpreter::run_one(const Statement& statement, const FramePtr& frame, std::string& out) {
  const auto inner = [&] { return std::make_shared<Frame>(Frame{frame, {}}); };
  switch (statement.kind) {
    case StatementKind::kText:
      write(out, statement.name);
      break;
    case StatementKind::kOutput:
      write(out, shown(*this, evaluate(statement.value, frame)));
      break;
    case StatementKind::kFor:
      run_for(statement, evaluate(statement.value, frame), frame, out, 0);
      break;
    case StatementKind::kIf:
      return run_if(statement, frame, out);
    case StatementKind::kSet:
      assign(statement.target, evaluate(statement.value, frame), frame);
      break;
    case StatementKind::kSetBlock:
      assign(statement.target, through_filters(statement, frame), frame);
      break;
    case StatementKind::kFilterBlock:
      write(out, shown(*this, through_filters(statement, frame)));
      break;
    case StatementKind::kMacro:
      frame->set(statement.name, macro_of(statement, frame));
      break;
    case StatementKind::kCallBlock:
      run_call_block(statement, frame, out);
      break;
    case StatementKind::kWith: {
      const FramePtr names = inner();
      for (const Statement& set : statement.assignments) assign(set.target, evaluate(set.value, frame), names);
      return run(statement.body, names, out);
    }
    case StatementKind::kScope:
      return run(statement.body, inner(), out);
    case StatementKind::kBreak:
      return Flow::kBreak;
    case StatementKind::kContinue:
      return Flow::kContinue;
  }
  return Flow::kOn;
}

Flow Interpreter::run_if(const Statement& statement, const FramePtr& frame, std::string& out) {
  for (const Branch& branch : statement.branches) {
    if (truth(evaluate(branch.condition, frame))) return run(branch.body, frame, out);
  }
  return run(statement.otherwise, frame, out);
}

void Interpreter::run_for(const Statement& statement, const Value& value, const FramePtr& frame, std::string& out,
                          int depth) {
  const int line = statement.line;
  std::function<bool(const Value&)> accepts;
  if (statement.condition.has_value()) {
    accepts = [&](const Value& item) {
      const auto names = std::make_shared<Frame>(Frame{frame, {}});
      assign(statement.target, item, names);
      return truth(evaluate(*statement.condition, names));
    };
  }
  std::function<Value(const Value&)> again;
  if (statement.recursive) {
    again = [this, &statement, frame, depth](const Value& items) {
      std::string inner;
      run_for(statement, items, frame, inner, depth + 1);
      return text(std::move(inner));
    };
  }
  const auto loop = std::make_shared<Loop>(*this, items_of(*this, value), std::move(accepts), std::move(again), depth);
  bool any = false;
  for (; loop->advance(); any = true) {
    charge(1);
    const auto names = std::make_shared<Frame>(Frame{frame, {}});
    names->set("loop", Value(std::static_pointer_cast<Object>(loop)));
    line_ = line;
    assign(statement.target, loop->current(), names);
    if (run(statement.body, names, out) == Flow::kBreak) {
      any = true;
      break;
    }
  }
  loop->end();
  if (!any) run(statement.otherwise, frame, out);
}

Value Interpreter::through_filters(const Statement& statement, const FramePtr& frame) {
  const auto names = std::make_shared<Frame>(Frame{frame, {}});
  std::string body;
  run(statement.body, names, body);
  names->set(kBlockText, text(std::move(body)));
  return evaluate(statement.value, names);
}

void Interpreter::run_call_block(const Statement& statement, const FramePtr& frame, std::string& out) {
  const Value callee = evaluate(statement.value.operands.front(), frame);
  Arguments arguments = arguments_of(statement.value, frame);
  arguments.named.emplace_back("caller", macro_of(statement, frame));
  line_ = statement.line;
  write(out, shown(*this, call(callee, arguments)));
}

void Interpreter::assign(const Expression& target, const Value& value, const FramePtr& frame) {
  if (target.kind == ExpressionKind::kName) {
    frame->set(target.name, value);
    return;
  }
  if (target.kind == ExpressionKind::kAttribute) {
    const Value object = evaluate(target.operands.front(), frame);
    auto* space = object.is_object() ? dynamic_cast<Namespace*>(object.object().get()) : nullptr;
    if (space == nullptr) fault("cannot assign attribute on non-namespace object");
    space->set(target.name, value);
    return;
  }
  const std::shared_ptr<const Sequence> items = items_of(*this, value);
  if (items->items.size() != target.operands.size()) {
    fault("cannot unpack {} values into {} names", items->items.size(), target.operands.size());
  }
  for (std::size_t i = 0; i < items->items.size(); ++i) assign(target.operands[i], items->items[i], frame);
}

Value Interpreter::macro_of(const Statement& statement, const FramePtr& frame) {
  charge(16);
  if (frames_of_macros_.empty() || frames_of_macros_.back() != frame) frames_of_macros_.push_back(frame);
  return function(statement.name, [this, &statement, frame](const Arguments& arguments) {
    return call_macro(statement, frame, arguments);
  });
}

Value Interpreter::call_macro(const Statement& statement, const FramePtr& frame, const Arguments& arguments) {
  const auto names = std::make_shared<Frame>(Frame{frame, {}});
  const int line = line_;
  Arguments own = arguments;
  std::erase_if(own.named, [&](const auto& entry) {
    if (entry.first == "caller") names->set("caller", entry.second);
    return entry.first == "caller";
  });
  std::vector<std::string_view> parameters;
  for (const Parameter& parameter : statement.parameters) parameters.push_back(parameter.name);
  const Bound bound = jinja::bind(statement.name, own, parameters, 0);
  for (std::size_t i = 0; i < bound.size(); ++i) {
    const Parameter& parameter = statement.parameters[i];
    Value value = bound[i].has_value() ? *bound[i]
                  : parameter.otherwise.has_value()
                      ? evaluate(*parameter.otherwise, names)
                      : undefined(fmt::format("parameter '{}' was not provided", parameter.name));
    names->set(parameter.name, std::move(value));
  }
  std::string out;
  run(statement.body, names, out);
  line_ = line;
  return text(std::move(out));
}

Template::Template(std::string_view source, std::string name, const Limits& limits)
    : name_(std::move(name)), limits_(limits) {
  try {
    statements_ = parse(source);
  } catch (const InputError& error) {
    reject_input("{}: {}", name_, error.what());
  }
}

std::string Template::render(const nlohmann::ordered_json& variables, const std::tm& now) const {
  Interpreter interpreter(limits_, now);
  try {
    const auto frame = std::make_shared<Frame>();
    for (const auto& [variable, value] : variables.items()) frame->set(variable, value_of(value));
    // A scope of the template's own, as in jinja2: what it sets hides a variable and does not change it.
    return interpreter.run(statements_, std::make_shared<Frame>(Frame{frame, {}}));
  } catch (const Fault& fault) {
    reject_input("{}: line {}: {}", name_, interpreter.line(), fault.what());
  }
}

}  // namespace kvloom::jinja
