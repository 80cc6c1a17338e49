// What stands behind "is".
#include <algorithm>
#include <array>

#include "infer/text/jinja_runtime.h"
#include "infer/text/python_text.h"
#include "infer/unicode.h"

namespace kvloom::jinja {
namespace {

bool is_defined(const Value& value) { return !value.is_undefined(); }
bool is_undefined(const Value& value) { return value.is_undefined(); }
bool is_none(const Value& value) { return value.is_none(); }
bool is_boolean(const Value& value) { return value.is_bool(); }
bool is_true(const Value& value) { return value.is_bool() && value.boolean(); }
bool is_false(const Value& value) { return value.is_bool() && !value.boolean(); }
bool is_integer(const Value& value) { return value.is_integer(); }
bool is_float(const Value& value) { return value.is_float(); }
bool is_number(const Value& value) { return value.is_number(); }
bool is_string(const Value& value) { return value.is_text(); }
bool is_mapping(const Value& value) { return value.is_dict(); }
bool is_callable(const Value& value) {
  return value.is_undefined() || (value.is_object() && value.object()->is_callable());
}
bool is_never(const Value&) { return false; }

bool is_sequence(const Value& value) {
  const bool has_places = value.is_sequence() && value.sequence().kind <= SequenceKind::kRange;
  return value.is_text() || value.is_dict() || value.is_undefined() || has_places;
}

bool is_iterable(const Value& value) {
  return value.is_text() || value.is_dict() || value.is_undefined() || value.is_sequence();
}

std::int64_t whole(std::string_view test, const Value& value) {
  if (value.is_undefined()) fault("{}", value.why_undefined());
  return integer_argument(test, value);
}

bool is_even(const Value& value) { return whole("even", value) % 2 == 0; }
bool is_odd(const Value& value) { return whole("odd", value) % 2 != 0; }

// As in jinja2, str(value).islower().
template <std::string (*kSame)(std::string_view), std::string (*kOther)(std::string_view)>
Value has_case(Runtime& runtime, const Value& self, const Arguments&) {
  const std::string text = shown(runtime, self);
  runtime.charge(text.size() / 8);
  return text == kSame(text) && text != kOther(text);
}

template <bool (*kIs)(const Value&)>
Value plain(Runtime&, const Value& self, const Arguments& arguments) {
  bind("the test", arguments, {});
  return kIs(self);
}

constexpr char kEqual[] = "==", kUnequal[] = "!=", kLess[] = "<", kAtMost[] = "<=", kMore[] = ">",
               kAtLeast[] = ">=", kIn[] = "in";

template <const char* kComparison>
Value compared(Runtime& runtime, const Value& self, const Arguments& arguments) {
  return compare(runtime, kComparison, self, *bind("the test", arguments, {"other"}, 1)[0]);
}

Value is_divisible(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Value by = *bind("divisibleby", arguments, {"num"}, 1)[0];
  return equal(runtime, binary(runtime, "%", whole("divisibleby", self), by), 0);
}

// Python's identity, where templates can tell: none, true, false, and equal texts and numbers of one type.
Value is_same(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Value other = *bind("sameas", arguments, {"other"}, 1)[0];
  if (self.is_sequence() && other.is_sequence()) return self.shared_sequence() == other.shared_sequence();
  if (self.is_dict() && other.is_dict()) return &self.dict() == &other.dict();
  return type_name(self) == type_name(other) && equal(runtime, self, other);
}

Value is_filter(Runtime& runtime, const Value& self, const Arguments&) {
  return find_filter(shown(runtime, self)) != nullptr;
}

Value is_test(Runtime& runtime, const Value& self, const Arguments&) {
  return find_test(shown(runtime, self)) != nullptr;
}

using Named = std::pair<std::string_view, Builtin>;

constexpr std::array kTests = std::to_array<Named>({
    {"defined", plain<is_defined>},
    {"undefined", plain<is_undefined>},
    {"none", plain<is_none>},
    {"boolean", plain<is_boolean>},
    {"true", plain<is_true>},
    {"false", plain<is_false>},
    {"integer", plain<is_integer>},
    {"float", plain<is_float>},
    {"number", plain<is_number>},
    {"string", plain<is_string>},
    {"mapping", plain<is_mapping>},
    {"sequence", plain<is_sequence>},
    {"iterable", plain<is_iterable>},
    {"callable", plain<is_callable>},
    {"escaped", plain<is_never>},
    {"even", plain<is_even>},
    {"odd", plain<is_odd>},
    {"lower", has_case<lowercased, uppercased>},
    {"upper", has_case<uppercased, lowercased>},
    {"divisibleby", is_divisible},
    {"sameas", is_same},
    {"filter", is_filter},
    {"test", is_test},
    {"eq", compared<kEqual>},
    {"equalto", compared<kEqual>},
    {"==", compared<kEqual>},
    {"ne", compared<kUnequal>},
    {"!=", compared<kUnequal>},
    {"lt", compared<kLess>},
    {"lessthan", compared<kLess>},
    {"<", compared<kLess>},
    {"le", compared<kAtMost>},
    {"<=", compared<kAtMost>},
    {"gt", compared<kMore>},
    {"greaterthan", compared<kMore>},
    {">", compared<kMore>},
    {"ge", compared<kAtLeast>},
    {">=", compared<kAtLeast>},
    {"in", compared<kIn>},
});

}  // namespace

Builtin find_test(std::string_view name) {
  const auto found = std::ranges::find(kTests, name, &Named::first);
  return found == kTests.end() ? nullptr : found->second;
}

}  // namespace kvloom::jinja
