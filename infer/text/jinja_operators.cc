#include <algorithm>
#include <cmath>
#include <compare>
#include <limits>

#include "infer/text/jinja_runtime.h"

namespace kvloom::jinja {
namespace {

[[noreturn]] void refuse_operands(std::string_view operation, const Value& a, const Value& b) {
  for (const Value* value : {&a, &b}) {
    if (value->is_undefined()) fault("{}", value->why_undefined());
  }
  fault("unsupported operand types for {}: '{}' and '{}'", operation, type_name(a), type_name(b));
}

bool is_kind(const Value& value, SequenceKind kind) { return value.is_sequence() && value.sequence().kind == kind; }

bool can_join(const Value& a, const Value& b) {
  const bool lists = is_kind(a, SequenceKind::kList) && is_kind(b, SequenceKind::kList);
  return lists || (is_kind(a, SequenceKind::kTuple) && is_kind(b, SequenceKind::kTuple));
}

std::int64_t checked(bool overflows, const std::int64_t& result) {
  if (overflows) fault("a number is too large");
  return result;
}

// Python rounds towards minus infinity.
std::int64_t floor_divide(std::int64_t a, std::int64_t b) {
  if (b == 0) fault("division by zero");
  if (a == std::numeric_limits<std::int64_t>::min() && b == -1) fault("a number is too large");
  return a / b - (a % b != 0 && (a % b < 0) != (b < 0) ? 1 : 0);
}

std::int64_t power_of(std::int64_t base, std::int64_t exponent) {
  std::int64_t result = 1;
  for (; exponent > 0; --exponent) {
    if (__builtin_mul_overflow(result, base, &result)) fault("a number is too large");
    if (base == 0 || base == 1) break;
    if (base == -1) return exponent % 2 == 0 ? 1 : -1;
  }
  return result;
}

Value whole(std::string_view operation, std::int64_t a, std::int64_t b) {
  std::int64_t result = 0;
  if (operation == "+") return checked(__builtin_add_overflow(a, b, &result), result);
  if (operation == "-") return checked(__builtin_sub_overflow(a, b, &result), result);
  if (operation == "*") return checked(__builtin_mul_overflow(a, b, &result), result);
  if (operation == "//") return floor_divide(a, b);
  if (operation == "%") return b == -1 ? 0 : a - floor_divide(a, b) * b;
  if (operation == "**" && b >= 0) return power_of(a, b);
  if (b == 0) fault("division by zero");
  return operation == "/" ? static_cast<double>(a) / static_cast<double>(b)
                          : std::pow(static_cast<double>(a), static_cast<double>(b));
}

double fractional(std::string_view operation, double a, double b) {
  if (operation == "+") return a + b;
  if (operation == "-") return a - b;
  if (operation == "*") return a * b;
  if (operation == "**") return std::pow(a, b);
  if (b == 0) fault("division by zero");
  if (operation == "/") return a / b;
  if (operation == "//") return std::floor(a / b);
  const double rest = std::fmod(a, b);
  return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}

Value joined(Runtime& runtime, const Value& a, const Value& b) {
  if (a.is_text() && b.is_text()) {
    runtime.check_bytes(a.text().size() + b.text().size());
    return runtime.text(a.text() + b.text());
  }
  List items = a.sequence().items;
  runtime.charge(items.size() + b.sequence().items.size());
  items.insert(items.end(), b.sequence().items.begin(), b.sequence().items.end());
  return runtime.list(std::move(items), a.sequence().kind);
}

Value repeated(Runtime& runtime, const Value& value, std::int64_t times) {
  const auto count = static_cast<std::size_t>(std::max<std::int64_t>(times, 0));
  const std::size_t size = value.is_text() ? value.text().size() : value.sequence().items.size();
  if (size > 0 && count > runtime.limits().bytes / size) fault("a value is repeated too often");
  if (value.is_text()) {
    std::string text;
    for (std::size_t i = 0; i < count; ++i) text += value.text();
    return runtime.text(std::move(text));
  }
  runtime.charge(4 * size * count);
  List items;
  for (std::size_t i = 0; i < count; ++i) {
    items.insert(items.end(), value.sequence().items.begin(), value.sequence().items.end());
  }
  return make_sequence(std::move(items), value.sequence().kind);
}

bool can_repeat(const Value& value) {
  return value.is_text() || is_kind(value, SequenceKind::kList) || is_kind(value, SequenceKind::kTuple);
}

bool equal_items(Runtime& runtime, const List& a, const List& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (!equal(runtime, a[i], b[i])) return false;
  }
  return true;
}

bool equal_entries(Runtime& runtime, const Dict& a, const Dict& b) {
  if (a.entries().size() != b.entries().size()) return false;
  return std::ranges::all_of(a.entries(), [&](const auto& entry) {
    const Value* other = b.find(entry.first);
    return other != nullptr && equal(runtime, entry.second, *other);
  });
}

std::partial_ordering order(Runtime& runtime, std::string_view comparison, const Value& a, const Value& b) {
  runtime.charge(1);
  if (a.is_whole() && b.is_whole()) return a.integer() <=> b.integer();
  if (a.is_number() && b.is_number()) return a.number() <=> b.number();
  if (a.is_text() && b.is_text()) {
    runtime.charge(std::min(a.text().size(), b.text().size()) / 8);
    return a.text() <=> b.text();
  }
  if (!can_join(a, b)) {
    for (const Value* value : {&a, &b}) {
      if (value->is_undefined()) fault("{}", value->why_undefined());
    }
    fault("'{}' not supported between instances of '{}' and '{}'", comparison, type_name(a), type_name(b));
  }
  const List& left = a.sequence().items;
  const List& right = b.sequence().items;
  for (std::size_t i = 0; i < std::min(left.size(), right.size()); ++i) {
    if (!equal(runtime, left[i], right[i])) return order(runtime, comparison, left[i], right[i]);
  }
  return left.size() <=> right.size();
}

}  // namespace

bool truth(const Value& value) {
  if (value.is_none() || value.is_undefined()) return false;
  if (value.is_number()) return value.number() != 0;
  if (value.is_text()) return !value.text().empty();
  if (value.is_dict()) return !value.dict().entries().empty();
  if (!value.is_sequence()) return true;
  return value.sequence().kind == SequenceKind::kGenerator || !value.sequence().items.empty();
}

bool equal(Runtime& runtime, const Value& a, const Value& b) {
  runtime.charge(1);
  if (a.is_whole() && b.is_whole()) return a.integer() == b.integer();
  if (a.is_number() && b.is_number()) return a.number() == b.number();
  if (a.is_text() && b.is_text()) {
    runtime.charge(std::min(a.text().size(), b.text().size()) / 8);
    return a.text() == b.text();
  }
  if (a.is_sequence() && b.is_sequence()) {
    return a.sequence().kind == b.sequence().kind && equal_items(runtime, a.sequence().items, b.sequence().items);
  }
  if (a.is_dict() && b.is_dict()) return equal_entries(runtime, a.dict(), b.dict());
  if (a.is_object() && b.is_object()) return a.object() == b.object();
  return (a.is_none() && b.is_none()) || (a.is_undefined() && b.is_undefined());
}

bool compare(Runtime& runtime, std::string_view comparison, const Value& a, const Value& b) {
  if (comparison == "==") return equal(runtime, a, b);
  if (comparison == "!=") return !equal(runtime, a, b);
  if (comparison == "in") return contains(runtime, b, a);
  if (comparison == "not in") return !contains(runtime, b, a);
  const std::partial_ordering ordering = order(runtime, comparison, a, b);
  if (comparison == "<") return ordering < 0;
  if (comparison == "<=") return ordering <= 0;
  return comparison == ">" ? ordering > 0 : ordering >= 0;
}

bool contains(Runtime& runtime, const Value& container, const Value& item) {
  if (container.is_text()) {
    if (item.is_undefined()) fault("{}", item.why_undefined());
    if (!item.is_text()) fault("'in <string>' requires string as left operand, not {}", type_name(item));
    runtime.charge(1 + container.text().size() / 8);
    return container.text().find(item.text()) != std::string::npos;
  }
  if (container.is_dict()) return container.dict().find(item) != nullptr;
  if (container.is_undefined()) return false;
  if (!container.is_sequence()) fault("argument of type '{}' is not iterable", type_name(container));
  const auto items = items_of(runtime, container);
  return std::ranges::any_of(items->items, [&](const Value& other) { return equal(runtime, other, item); });
}

Value binary(Runtime& runtime, std::string_view operation, const Value& a, const Value& b) {
  if (operation == "%" && a.is_text()) return runtime.text(percent_formatted(runtime, a.text(), b));
  if (a.is_whole() && b.is_whole()) return whole(operation, a.integer(), b.integer());
  if (a.is_number() && b.is_number()) return fractional(operation, a.number(), b.number());
  if (operation == "+" && ((a.is_text() && b.is_text()) || can_join(a, b))) return joined(runtime, a, b);
  if (operation == "+" && a.is_text() && !b.is_undefined()) {
    fault("can only concatenate str (not \"{}\") to str", type_name(b));
  }
  if (operation == "*" && can_repeat(a) && b.is_whole()) return repeated(runtime, a, b.integer());
  if (operation == "*" && can_repeat(b) && a.is_whole()) return repeated(runtime, b, a.integer());
  refuse_operands(operation, a, b);
}

Value negated(const Value& value) {
  if (value.is_undefined()) fault("{}", value.why_undefined());
  if (!value.is_number()) fault("bad operand type for unary -: '{}'", type_name(value));
  if (value.is_float()) return -value.number();
  std::int64_t result = 0;
  return checked(__builtin_sub_overflow(std::int64_t{0}, value.integer(), &result), result);
}

}  // namespace kvloom::jinja
