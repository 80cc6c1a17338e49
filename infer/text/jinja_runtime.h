// What a template's operators, filters, tests and methods share: its budget, and Python's rules for values.
#pragma once

#include <ctime>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "infer/text/jinja_value.h"

namespace kvloom::jinja {

// A template is input that nobody has vouched for: how much it may do.
struct Limits {
  std::size_t steps = 20'000'000;             // expressions, and what is done to texts and lists by their lengths
  std::size_t bytes = std::size_t{16} << 20;  // of one text, and of all that is written
  int depth = 250;                            // of calls, blocks and expressions in one another
};

class Runtime {
 public:
  Runtime(const Limits& limits, const std::tm& now) : limits_(limits), now_(now) {}
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;
  virtual ~Runtime() = default;

  // Each throws Fault where the template goes beyond a limit.
  void charge(std::size_t steps);
  void check_bytes(std::size_t bytes) const;
  Value text(std::string text);
  Value list(List items, SequenceKind kind = SequenceKind::kList);

  Value call(const Value& callee, const Arguments& arguments);
  const std::tm& now() const { return now_; }
  const Limits& limits() const { return limits_; }

  // Objects that may refer to themselves are let go of by the end of the rendering.
  virtual void keep(std::shared_ptr<Object> object) = 0;

  // For as long as it lives the template is one level deeper.
  class Descent {
   public:
    explicit Descent(Runtime& runtime);
    ~Descent() { --runtime_.depth_; }
    Descent(const Descent&) = delete;
    Descent& operator=(const Descent&) = delete;

   private:
    Runtime& runtime_;
  };

 private:
  Limits limits_;
  std::tm now_;
  std::size_t steps_ = 0;
  int depth_ = 0;
};

// The arguments of what has these parameters, in their order; empty where one is not given. Throws Fault for too many,
// for unknown names and where one of the first `required` is missing.
using Bound = std::vector<std::optional<Value>>;
Bound bind(std::string_view callee, const Arguments& arguments, std::span<const std::string_view> parameters,
           std::size_t required);
inline Bound bind(std::string_view callee, const Arguments& arguments,
                  std::initializer_list<std::string_view> parameters, std::size_t required = 0) {
  return bind(callee, arguments, std::span(parameters.begin(), parameters.size()), required);
}

// Of an argument that must be a text or a whole number, and of one that may be left out or none.
const std::string& text_argument(std::string_view callee, const std::optional<Value>& argument);
std::int64_t integer_argument(std::string_view callee, const std::optional<Value>& argument);
std::optional<std::string> optional_text(std::string_view callee, const std::optional<Value>& argument);
std::optional<std::int64_t> optional_integer(std::string_view callee, const std::optional<Value>& argument);
bool truth_argument(const std::optional<Value>& argument, bool otherwise);

// A method, a filter or a test: what it does to `self`. Tables of them are found by name.
using Builtin = Value (*)(Runtime& runtime, const Value& self, const Arguments& arguments);
Builtin find_method(const Value& self, std::string_view name);  // null where there is none
Builtin find_filter(std::string_view name);
Builtin find_test(std::string_view name);
// range, namespace, dict, joiner, cycler, raise_exception, strftime_now.
std::optional<Value> find_function(Runtime& runtime, std::string_view name);
Value function(std::string name, std::function<Value(const Arguments&)> run);

bool truth(const Value& value);
bool equal(Runtime& runtime, const Value& a, const Value& b);
// `comparison` is "<", "<=", ">", ">=", "==", "!=", "in" or "not in".
bool compare(Runtime& runtime, std::string_view comparison, const Value& a, const Value& b);
bool contains(Runtime& runtime, const Value& container, const Value& item);
// "+", "-", "*", "/", "//", "%", "**".
Value binary(Runtime& runtime, std::string_view operation, const Value& a, const Value& b);
Value negated(const Value& value);

// What a loop goes through: items, keys or characters. A generator is spent.
std::shared_ptr<const Sequence> items_of(Runtime& runtime, const Value& value);
std::int64_t length_of(const Value& value);
Value item_of(Runtime& runtime, const Value& value, const Value& key);
Value attribute_of(Runtime& runtime, const Value& value, std::string_view name);
// value[start:stop:step], each none where it is not given.
Value slice_of(Runtime& runtime, const Value& value, const Value& start, const Value& stop, const Value& step);
std::vector<std::string_view> characters_of(std::string_view text);

// With `old` replaced, `most` times or, below 0, everywhere; and with room at the sides: '<', '>' or '^'.
std::string replaced(Runtime& runtime, std::string_view text, std::string_view old, std::string_view by,
                     std::int64_t most);
std::string padded_text(Runtime& runtime, const std::string& text, std::int64_t width, char align,
                        std::string_view fill);

// Python's str and repr.
std::string shown(Runtime& runtime, const Value& value);
std::string represented(Runtime& runtime, const Value& value);
std::string shown_number(double number);

struct JsonStyle {
  std::optional<std::string> indent;  // of one level; none: all in one line
  std::string between_items;
  std::string between_key_and_value;
  bool sorted = false;
  bool ascii = false;
};
// Python's json.dumps.
std::string as_json(Runtime& runtime, const Value& value, const JsonStyle& style);

// "text % values" and "text".format(values).
std::string percent_formatted(Runtime& runtime, const std::string& format, const Value& values);
std::string brace_formatted(Runtime& runtime, const std::string& format, const Arguments& arguments);

}  // namespace kvloom::jinja
