#include "infer/text/jinja_runtime.h"

#include <algorithm>

#include "infer/unicode.h"

namespace kvloom::jinja {
namespace {

class Function final : public Object {
 public:
  Function(std::string name, std::function<Value(const Arguments&)> run)
      : name_(std::move(name)), run_(std::move(run)) {}
  std::string type() const override { return "function"; }
  bool is_callable() const override { return true; }
  Value call(const Arguments& arguments) override { return run_(arguments); }

 private:
  std::string name_;
  std::function<Value(const Arguments&)> run_;
};

// How jinja2 names the type of what lacks an attribute.
std::string type_shown(const Value& value) { return value.is_none() ? "None" : type_name(value) + " object"; }

// Immutable sandboxes refuse what changes a value in place.
bool changes_in_place(const Value& value, std::string_view name) {
  constexpr std::string_view kOfLists[] = {"append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"};
  constexpr std::string_view kOfDicts[] = {"clear", "pop", "popitem", "setdefault", "update"};
  if (value.is_dict()) return std::ranges::count(kOfDicts, name) > 0;
  return value.is_sequence() && value.sequence().kind == SequenceKind::kList && std::ranges::count(kOfLists, name) > 0;
}

Value unsafe(const Value& value, std::string_view name) {
  return undefined(fmt::format("access to attribute '{}' of '{}' object is unsafe.", name, type_name(value)));
}

std::optional<Value> bound_method(Runtime& runtime, const Value& value, std::string_view name) {
  if (changes_in_place(value, name)) return unsafe(value, name);
  if (name.size() > 4 && name.starts_with("__") && name.ends_with("__")) return unsafe(value, name);
  const Builtin method = find_method(value, name);
  if (method == nullptr) return std::nullopt;
  return function(std::string(name), [&runtime, value, method](const Arguments& arguments) {
    if (value.is_text()) runtime.charge(value.text().size() / 8);
    return method(runtime, value, arguments);
  });
}

bool has_places(const Value& value) {
  return value.is_text() || (value.is_sequence() && value.sequence().kind <= SequenceKind::kRange);
}

}  // namespace

Value function(std::string name, std::function<Value(const Arguments&)> run) {
  return std::shared_ptr<Object>(std::make_shared<Function>(std::move(name), std::move(run)));
}

void Runtime::charge(std::size_t steps) {
  if (steps > limits_.steps - steps_) fault("takes more than {} steps", limits_.steps);
  steps_ += steps;
}

void Runtime::check_bytes(std::size_t bytes) const {
  if (bytes > limits_.bytes) fault("makes a text of more than {} bytes", limits_.bytes);
}

Value Runtime::text(std::string text) {
  check_bytes(text.size());
  charge(1 + text.size() / 8);
  return text;
}

Value Runtime::list(List items, SequenceKind kind) {
  charge(1 + 4 * items.size());
  return make_sequence(std::move(items), kind);
}

Runtime::Descent::Descent(Runtime& runtime) : runtime_(runtime) {
  if (runtime.depth_ >= runtime.limits_.depth) fault("goes more than {} levels deep", runtime.limits_.depth);
  ++runtime.depth_;
}

Value Runtime::call(const Value& callee, const Arguments& arguments) {
  charge(1);
  const Descent descent(*this);
  if (callee.is_undefined()) fault("{}", callee.why_undefined());
  if (!callee.is_object()) fault("'{}' object is not callable", type_name(callee));
  return callee.object()->call(arguments);
}

Bound bind(std::string_view callee, const Arguments& arguments, std::span<const std::string_view> parameters,
           std::size_t required) {
  if (arguments.positional.size() > parameters.size()) {
    fault("{}() takes {} arguments at most, not {}", callee, parameters.size(), arguments.positional.size());
  }
  Bound bound(arguments.positional.begin(), arguments.positional.end());
  bound.resize(parameters.size());
  for (const auto& [name, value] : arguments.named) {
    const auto at = static_cast<std::size_t>(std::ranges::find(parameters, name) - parameters.begin());
    if (at == parameters.size()) fault("{}() got an unexpected keyword argument '{}'", callee, name);
    if (bound[at].has_value()) fault("{}() got multiple values for argument '{}'", callee, name);
    bound[at] = value;
  }
  for (std::size_t i = 0; i < required; ++i) {
    if (!bound[i].has_value()) fault("{}() lacks the argument '{}'", callee, parameters[i]);
  }
  return bound;
}

const std::string& text_argument(std::string_view callee, const std::optional<Value>& argument) {
  if (!argument->is_text()) fault("{}() wants a text, not '{}'", callee, type_name(*argument));
  return argument->text();
}

std::int64_t integer_argument(std::string_view callee, const std::optional<Value>& argument) {
  if (!argument->is_whole()) fault("{}() wants a whole number, not '{}'", callee, type_name(*argument));
  return argument->integer();
}

std::optional<std::string> optional_text(std::string_view callee, const std::optional<Value>& argument) {
  if (!argument.has_value() || argument->is_none()) return std::nullopt;
  return text_argument(callee, argument);
}

std::optional<std::int64_t> optional_integer(std::string_view callee, const std::optional<Value>& argument) {
  if (!argument.has_value() || argument->is_none()) return std::nullopt;
  return integer_argument(callee, argument);
}

bool truth_argument(const std::optional<Value>& argument, bool otherwise) {
  return argument.has_value() ? truth(*argument) : otherwise;
}

std::vector<std::string_view> characters_of(std::string_view text) {
  std::vector<std::string_view> characters;
  while (!text.empty()) {
    const std::size_t bytes = first_character(text).bytes;
    characters.push_back(text.substr(0, bytes));
    text.remove_prefix(bytes);
  }
  return characters;
}

std::shared_ptr<const Sequence> items_of(Runtime& runtime, const Value& value) {
  if (value.is_sequence()) {
    if (value.sequence().kind != SequenceKind::kGenerator) return value.shared_sequence();
    const bool spent = std::exchange(value.sequence().spent, true);
    return spent ? std::make_shared<const Sequence>() : value.shared_sequence();
  }
  Sequence made;
  if (value.is_text()) {
    for (const std::string_view character : characters_of(value.text())) made.items.emplace_back(character);
  } else if (value.is_dict()) {
    for (const auto& [key, unused] : value.dict().entries()) made.items.push_back(key);
  } else if (!value.is_undefined()) {
    fault("'{}' object is not iterable", type_name(value));
  }
  runtime.charge(1 + 4 * made.items.size());
  return std::make_shared<const Sequence>(std::move(made));
}

std::int64_t length_of(const Value& value) {
  if (value.is_undefined()) return 0;
  if (value.is_text()) return static_cast<std::int64_t>(count_characters(value.text()));
  if (value.is_dict()) return static_cast<std::int64_t>(value.dict().entries().size());
  if (!value.is_sequence() || value.sequence().kind == SequenceKind::kGenerator) {
    fault("object of type '{}' has no len()", type_name(value));
  }
  return static_cast<std::int64_t>(value.sequence().items.size());
}

Value attribute_of(Runtime& runtime, const Value& value, std::string_view name) {
  if (value.is_undefined()) fault("{}", value.why_undefined());
  std::optional<Value> found = value.is_object() ? value.object()->attribute(name) : bound_method(runtime, value, name);
  if (found.has_value()) return *found;
  if (value.is_dict()) {
    if (const Value* entry = value.dict().find(name)) return *entry;
  }
  return undefined(fmt::format("'{}' has no attribute '{}'", type_shown(value), name));
}

Value item_of(Runtime& runtime, const Value& value, const Value& key) {
  if (value.is_undefined()) fault("{}", value.why_undefined());
  if (value.is_dict() && !key.is_sequence() && !key.is_dict() && !key.is_object() && !key.is_undefined()) {
    if (const Value* entry = value.dict().find(key)) return *entry;
  }
  if (key.is_text()) return attribute_of(runtime, value, key.text());
  if (key.is_whole() && has_places(value)) {
    runtime.charge(value.is_text() ? 1 + value.text().size() / 8 : 1);
    const std::int64_t length = length_of(value);
    const std::int64_t at = key.integer() < 0 ? key.integer() + length : key.integer();
    if (at >= 0 && at < length) {
      const auto place = static_cast<std::size_t>(at);
      if (!value.is_text()) return value.sequence().items[place];
      if (is_ascii(value.text())) return value.text().substr(place, 1);
      return characters_of(value.text())[place];
    }
  }
  return undefined(fmt::format("{} has no element {}", type_shown(value), represented(runtime, key)));
}

Value slice_of(Runtime& runtime, const Value& value, const Value& start, const Value& stop, const Value& step) {
  if (value.is_undefined()) fault("{}", value.why_undefined());
  if (!has_places(value)) fault("'{}' object is not subscriptable", type_name(value));
  constexpr std::int64_t kFar = std::int64_t{1} << 40;  // beyond every length
  const std::int64_t by = std::clamp(optional_integer("slice", step).value_or(1), -kFar, kFar);
  if (by == 0) fault("slice step cannot be zero");
  const std::int64_t length = length_of(value);
  const std::int64_t low = by > 0 ? 0 : -1;
  const std::int64_t high = by > 0 ? length : length - 1;
  const auto bounded = [&](const Value& given, std::int64_t otherwise) {
    const std::int64_t at = optional_integer("slice", given).value_or(otherwise);
    if (given.is_none()) return at;
    return at < 0 ? std::max(at + length, low) : std::min(at, high);
  };
  const std::int64_t from = bounded(start, by > 0 ? 0 : length - 1);
  const std::int64_t to = bounded(stop, by > 0 ? length : -1);
  std::vector<std::size_t> places;
  for (std::int64_t at = from; by > 0 ? at < to : at > to; at += by) places.push_back(static_cast<std::size_t>(at));
  runtime.charge(1 + places.size());
  if (value.is_text()) {
    std::string text;
    if (is_ascii(value.text())) {
      for (const std::size_t place : places) text += value.text()[place];
    } else {
      const std::vector<std::string_view> characters = characters_of(value.text());
      runtime.charge(characters.size());
      for (const std::size_t place : places) text += characters[place];
    }
    return runtime.text(std::move(text));
  }
  List items;
  for (const std::size_t place : places) items.push_back(value.sequence().items[place]);
  return runtime.list(std::move(items), value.sequence().kind);
}

}  // namespace kvloom::jinja
