// Carries out a template's tree.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "infer/text/jinja_runtime.h"
#include "infer/text/jinja_syntax.h"

namespace kvloom::jinja {

// The names of a scope: a loop's round, a macro's call, or the template.
struct Frame {
  std::shared_ptr<Frame> outer;
  std::vector<std::pair<std::string, Value>> names;

  const Value* find(std::string_view name) const;  // here or further out
  void set(std::string_view name, Value value);    // here
};
using FramePtr = std::shared_ptr<Frame>;

enum class Flow { kOn, kBreak, kContinue };

class Interpreter final : public Runtime {
 public:
  using Runtime::Runtime;
  ~Interpreter() override;

  std::string run(const std::vector<Statement>& statements, const FramePtr& frame);
  // Where the template is, or where it failed.
  int line() const { return line_; }
  void keep(std::shared_ptr<Object> object) override { kept_.push_back(std::move(object)); }

 private:
  Flow run(const std::vector<Statement>& statements, const FramePtr& frame, std::string& out);
  Flow run_one(const Statement& statement, const FramePtr& frame, std::string& out);
  Flow run_if(const Statement& statement, const FramePtr& frame, std::string& out);
  void run_for(const Statement& statement, const Value& value, const FramePtr& frame, std::string& out, int depth);
  void run_call_block(const Statement& statement, const FramePtr& frame, std::string& out);
  Value through_filters(const Statement& statement, const FramePtr& frame);
  void write(std::string& out, const std::string& text);
  void assign(const Expression& target, const Value& value, const FramePtr& frame);
  Value macro_of(const Statement& statement, const FramePtr& frame);
  Value call_macro(const Statement& statement, const FramePtr& frame, const Arguments& arguments);

  Value evaluate(const Expression& expression, const FramePtr& frame);
  Value evaluate_one(const Expression& expression, const FramePtr& frame);
  Value name_of(const Expression& expression, const FramePtr& frame);
  Value dict_of(const Expression& expression, const FramePtr& frame);
  Value call_of(const Expression& expression, const FramePtr& frame);
  Value filter_of(const Expression& expression, const FramePtr& frame);
  Value test_of(const Expression& expression, const FramePtr& frame);
  Value unary_of(const Expression& expression, const FramePtr& frame);
  Value concatenation_of(const Expression& expression, const FramePtr& frame);
  Value comparison_of(const Expression& expression, const FramePtr& frame);
  List operands_of(const Expression& expression, const FramePtr& frame);
  Arguments arguments_of(const Expression& expression, const FramePtr& frame);

  int line_ = 1;
  std::vector<std::shared_ptr<Object>> kept_;
  std::vector<FramePtr> frames_of_macros_;  // which hold macros that hold them
};

}  // namespace kvloom::jinja
