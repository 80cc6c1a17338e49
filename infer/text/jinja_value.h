// The values of a Jinja template: Python's, as far as templates use them.
#pragma once

#include <fmt/format.h>

#include <concepts>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

namespace kvloom::jinja {

// What went wrong in a template, without the line: the interpreter knows that.
class Fault : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

template <typename... Args>
[[noreturn]] void fault(fmt::format_string<Args...> format, Args&&... args) {
  throw Fault(fmt::format(format, std::forward<Args>(args)...));
}

class Value;
class Object;
class Dict;
struct Sequence;
using List = std::vector<Value>;

struct None {};
// What a name or an attribute is that is not there. It prints as nothing; what it cannot do fails with `why`.
struct Undefined {
  std::shared_ptr<const std::string> why;
};

// Cheap to copy. Text is well-formed UTF-8.
class Value {
 public:
  Value() = default;  // none
  Value(Undefined undefined) : held_(std::move(undefined)) {}
  Value(bool truth) : held_(truth) {}
  template <std::integral T>
  requires(!std::same_as<T, bool>) Value(T number) : held_(static_cast<std::int64_t>(number)) {}
  Value(double number) : held_(number) {}
  Value(std::string text) : held_(std::make_shared<const std::string>(std::move(text))) {}
  Value(std::string_view text) : Value(std::string(text)) {}
  Value(const char* text) : Value(std::string(text)) {}
  Value(std::shared_ptr<const Sequence> sequence) : held_(std::move(sequence)) {}
  Value(std::shared_ptr<const Dict> dict) : held_(std::move(dict)) {}
  Value(std::shared_ptr<Object> object) : held_(std::move(object)) {}

  bool is_undefined() const { return holds<Undefined>(); }
  bool is_none() const { return holds<None>(); }
  bool is_bool() const { return holds<bool>(); }
  bool is_integer() const { return holds<std::int64_t>(); }
  bool is_float() const { return holds<double>(); }
  bool is_number() const { return is_bool() || is_integer() || is_float(); }
  bool is_text() const { return holds<Text>(); }
  bool is_sequence() const { return holds<std::shared_ptr<const Sequence>>(); }
  bool is_dict() const { return holds<std::shared_ptr<const Dict>>(); }
  bool is_object() const { return holds<std::shared_ptr<Object>>(); }

  // Only for what the value is.
  const std::string& why_undefined() const { return *std::get<Undefined>(held_).why; }
  bool boolean() const { return std::get<bool>(held_); }
  const std::string& text() const { return *std::get<Text>(held_); }
  const Sequence& sequence() const { return *shared_sequence(); }
  const std::shared_ptr<const Sequence>& shared_sequence() const {
    return std::get<std::shared_ptr<const Sequence>>(held_);
  }
  const Dict& dict() const { return *std::get<std::shared_ptr<const Dict>>(held_); }
  const std::shared_ptr<Object>& object() const { return std::get<std::shared_ptr<Object>>(held_); }
  // Of an integer or a bool; of any number.
  std::int64_t integer() const { return is_bool() ? std::int64_t{boolean()} : std::get<std::int64_t>(held_); }
  double number() const { return is_float() ? std::get<double>(held_) : static_cast<double>(integer()); }
  bool is_whole() const { return is_bool() || is_integer(); }

 private:
  using Text = std::shared_ptr<const std::string>;

  template <typename T>
  bool holds() const {
    return std::holds_alternative<T>(held_);
  }

  std::variant<None, Undefined, bool, std::int64_t, double, Text, std::shared_ptr<const Sequence>,
               std::shared_ptr<const Dict>, std::shared_ptr<Object>>
      held_;
};

Value undefined(std::string why);

enum class SequenceKind { kList, kTuple, kRange, kKeys, kValues, kItems, kGenerator };

// A list, or what Python has beside it. A generator gives its items once.
struct Sequence {
  List items;
  SequenceKind kind = SequenceKind::kList;
  int depth = 1;  // of what is nested in it
  mutable bool spent = false;
};

// Throws Fault for one that is nested too deeply.
Value make_sequence(List items, SequenceKind kind = SequenceKind::kList);
// How deeply others are nested in it: 0 for what holds none.
int depth_of(const Value& value);

// In the order in which the keys came.
class Dict {
 public:
  // A key that is there already keeps its place and takes the new value. Throws Fault for a key that cannot be one, and
  // for values that are nested too deeply.
  void set(const Value& key, Value value);
  const Value* find(const Value& key) const;
  const Value* find(std::string_view key) const;
  const std::vector<std::pair<Value, Value>>& entries() const { return entries_; }
  int depth() const { return depth_; }

 private:
  std::vector<std::pair<Value, Value>> entries_;
  std::unordered_map<std::string, std::size_t> places_;
  int depth_ = 1;
};

Value make_dict(Dict dict);

struct Arguments {
  List positional;
  std::vector<std::pair<std::string, Value>> named;
};

// What has a state or can be called: macros, functions, methods, namespaces, loops.
class Object {
 public:
  virtual ~Object() = default;
  virtual std::string type() const = 0;
  virtual std::optional<Value> attribute(std::string_view) { return std::nullopt; }
  virtual bool is_callable() const { return false; }
  virtual Value call(const Arguments&);  // throws Fault
};

// As Python names types: "str", "NoneType".
std::string type_name(const Value& value);

// Throws Fault for what is nested too deeply, and for text that is no UTF-8.
Value value_of(const nlohmann::ordered_json& json);

}  // namespace kvloom::jinja
