#include "infer/text/jinja_filters.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdlib>

#include "infer/text/python_text.h"
#include "infer/unicode.h"

namespace kvloom::jinja {
namespace {

template <std::string (*kChange)(std::string_view)>
Value changed(Runtime& runtime, const Value& self, const Arguments& arguments) {
  bind("the filter", arguments, {});
  return runtime.text(kChange(shown(runtime, self)));
}

// jinja2's: a word also begins behind a bracket or a hyphen, and nowhere else than it and white space.
std::string titled(std::string_view text) {
  std::string result;
  bool begins = true;
  for (const std::string_view character : characters_of(text)) {
    result += begins ? uppercased(character) : lowercased(character);
    begins = std::string_view("-({[<").find(character) != std::string_view::npos || stripped(character).empty();
  }
  return result;
}

Value string(Runtime& runtime, const Value& self, const Arguments& arguments) {
  bind("string", arguments, {});
  return self.is_text() ? self : runtime.text(shown(runtime, self));
}

Value safe(Runtime& runtime, const Value& self, const Arguments& arguments) { return string(runtime, self, arguments); }

Value trim(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Value text = runtime.text(shown(runtime, self));
  return find_method(text, "strip")(runtime, text, arguments);
}

Value replace(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Bound given = bind("replace", arguments, {"old", "new", "count"}, 2);
  return runtime.text(replaced(runtime, shown(runtime, self), shown(runtime, *given[0]), shown(runtime, *given[1]),
                               optional_integer("replace", given[2]).value_or(-1)));
}

Value otherwise(Runtime&, const Value& self, const Arguments& arguments) {
  const Bound given = bind("default", arguments, {"default_value", "boolean"});
  const bool stays = self.is_undefined() ? false : !truth_argument(given[1], false) || truth(self);
  return stays ? self : given[0].value_or(Value(""));
}

Value indent(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Bound given = bind("indent", arguments, {"width", "first", "blank"});
  const bool by_text = given[0].has_value() && given[0]->is_text();
  const std::int64_t width = by_text ? 0 : given[0].has_value() ? integer_argument("indent", given[0]) : 4;
  const std::string margin = by_text ? given[0]->text() : padded_text(runtime, "", width, '<', " ");
  const std::string text = shown(runtime, self) + "\n";
  std::string result;
  bool first = true;
  for (const std::string_view line : text_lines_of(text)) {
    const std::string_view content = without_line_end(line);
    const bool moved = first ? truth_argument(given[1], false) : !content.empty() || truth_argument(given[2], false);
    if (!first) result += '\n';
    if (moved) result += margin;
    result += content;
    runtime.check_bytes(result.size());
    first = false;
  }
  return runtime.text(std::move(result));
}

Value center(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Bound given = bind("center", arguments, {"width"});
  const std::int64_t width = given[0].has_value() ? integer_argument("center", given[0]) : 80;
  return runtime.text(padded_text(runtime, shown(runtime, self), width, '^', " "));
}

Value truncate(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Bound given = bind("truncate", arguments, {"length", "killwords", "end", "leeway"});
  const std::string text = shown(runtime, self);
  const std::string end = optional_text("truncate", given[2]).value_or("...");
  const std::int64_t length = given[0].has_value() ? integer_argument("truncate", given[0]) : 255;
  const std::int64_t leeway = optional_integer("truncate", given[3]).value_or(5);
  const std::int64_t kept = length - static_cast<std::int64_t>(count_characters(end));
  if (kept < 0 || leeway < 0 || length > INT32_MAX || leeway > INT32_MAX)
    fault("truncate() wants a length that holds its end");
  const std::vector<std::string_view> characters = characters_of(text);
  if (static_cast<std::int64_t>(characters.size()) <= length + leeway) return runtime.text(text);
  std::string cut(text.data(), characters[static_cast<std::size_t>(kept)].data());
  if (!truth_argument(given[1], false)) cut = cut.substr(0, cut.rfind(' '));
  return runtime.text(cut + end);
}

Value format(Runtime& runtime, const Value& self, const Arguments& arguments) {
  if (arguments.named.empty()) {
    const Value values = make_sequence(arguments.positional, SequenceKind::kTuple);
    return runtime.text(percent_formatted(runtime, shown(runtime, self), values));
  }
  if (!arguments.positional.empty()) fault("can't handle positional and keyword arguments at the same time");
  Dict dict;
  for (const auto& [name, value] : arguments.named) dict.set(name, value);
  return runtime.text(percent_formatted(runtime, shown(runtime, self), make_dict(std::move(dict))));
}

std::optional<double> parsed(std::string_view text) {
  text = stripped(text);
  if (text.starts_with('+') && !text.starts_with("+-")) text.remove_prefix(1);
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (end != text.data() + text.size()) return std::nullopt;
  if (error == std::errc::result_out_of_range) return std::strtod(std::string(text).c_str(), nullptr);
  return error == std::errc() ? std::optional(value) : std::nullopt;
}

std::optional<std::int64_t> parsed_whole(std::string_view text, int base) {
  text = stripped(text);
  if (text.starts_with('+') && !text.starts_with("+-")) text.remove_prefix(1);
  const std::string_view prefix = base == 16 ? "0x" : base == 8 ? "0o" : base == 2 ? "0b" : "";
  if (!prefix.empty() && text.starts_with(prefix)) text.remove_prefix(2);
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (error == std::errc::result_out_of_range) fault("a number is too large");
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

Value to_integer(Runtime&, const Value& self, const Arguments& arguments) {
  const Bound given = bind("int", arguments, {"default", "base"});
  const Value other = given[0].value_or(Value(0));
  const std::int64_t base = optional_integer("int", given[1]).value_or(10);
  if (base < 2 || base > 36) fault("int() wants a base of 2 to 36");
  if (self.is_undefined()) fault("{}", self.why_undefined());
  if (self.is_whole()) return self.integer();
  std::optional<double> number;
  if (self.is_float()) number = self.number();
  if (self.is_text()) {
    if (const auto value = parsed_whole(self.text(), static_cast<int>(base))) return *value;
    number = parsed(self.text());
  }
  if (!number.has_value() || !std::isfinite(*number)) return other;
  if (std::abs(*number) >= 9.2e18) fault("a number is too large");
  return static_cast<std::int64_t>(*number);
}

Value to_float(Runtime&, const Value& self, const Arguments& arguments) {
  const Bound given = bind("float", arguments, {"default"});
  if (self.is_undefined()) fault("{}", self.why_undefined());
  if (self.is_number()) return self.number();
  const std::optional<double> number = self.is_text() ? parsed(self.text()) : std::nullopt;
  return number.has_value() ? Value(*number) : given[0].value_or(Value(0.0));
}

Value absolute(Runtime&, const Value& self, const Arguments& arguments) {
  bind("abs", arguments, {});
  if (self.is_undefined()) fault("{}", self.why_undefined());
  if (!self.is_number()) fault("bad operand type for abs(): '{}'", type_name(self));
  return self.number() < 0 ? negated(self) : negated(negated(self));
}

Value round_to(Runtime&, const Value& self, const Arguments& arguments) {
  const Bound given = bind("round", arguments, {"precision", "method"});
  const std::int64_t places = optional_integer("round", given[0]).value_or(0);
  const std::string method = optional_text("round", given[1]).value_or("common");
  if (self.is_undefined()) fault("{}", self.why_undefined());
  if (!self.is_number()) fault("round() wants a number, not '{}'", type_name(self));
  if (places < 0 || places > 15) fault("round() to {} places; right are 0 to 15", places);
  if (method == "common") {
    if (self.is_whole()) return self.integer();
    return std::isfinite(self.number()) ? std::stod(fmt::format("{:.{}f}", self.number(), places)) : self.number();
  }
  if (method != "ceil" && method != "floor") fault("method must be common, ceil or floor");
  const double scale = std::pow(10.0, static_cast<double>(places));
  const double scaled = self.number() * scale;
  return (method == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / scale;
}

// transformers' own: no HTML escapes, and characters stay as they are.
Value to_json(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Bound given = bind("tojson", arguments, {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonStyle style{.between_items = ", ", .between_key_and_value = ": "};
  style.ascii = truth_argument(given[0], false);
  style.sorted = truth_argument(given[3], false);
  if (given[1].has_value() && !given[1]->is_none()) {
    style.indent = given[1]->is_text() ? given[1]->text()
                                       : padded_text(runtime, "", integer_argument("tojson", given[1]), '<', " ");
    style.between_items = ",";
  }
  if (given[2].has_value() && !given[2]->is_none()) {
    const auto separators = items_of(runtime, *given[2]);
    if (separators->items.size() != 2) fault("tojson() wants two separators, not {}", separators->items.size());
    style.between_items = text_argument("tojson", separators->items[0]);
    style.between_key_and_value = text_argument("tojson", separators->items[1]);
  }
  return runtime.text(as_json(runtime, self, style));
}

// Attributes alone: of what a template has, that is methods.
Value attribute(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const std::string name = text_argument("attr", bind("attr", arguments, {"name"}, 1)[0]);
  if (self.is_dict() && find_method(self, name) == nullptr) {
    return undefined(fmt::format("'dict object' has no attribute '{}'", name));
  }
  return attribute_of(runtime, self, name);
}

constexpr std::array kFilters = std::to_array<NamedFilter>({
    {"abs", absolute},
    {"attr", attribute},
    {"capitalize", changed<capitalized>},
    {"center", center},
    {"d", otherwise},
    {"default", otherwise},
    {"float", to_float},
    {"format", format},
    {"indent", indent},
    {"int", to_integer},
    {"lower", changed<lowercased>},
    {"replace", replace},
    {"round", round_to},
    {"safe", safe},
    {"string", string},
    {"title", changed<titled>},
    {"tojson", to_json},
    {"trim", trim},
    {"truncate", truncate},
    {"upper", changed<uppercased>},
});

}  // namespace

std::span<const NamedFilter> text_filters() { return kFilters; }

Builtin find_filter(std::string_view name) {
  for (const std::span<const NamedFilter> table : {text_filters(), list_filters()}) {
    const auto found = std::ranges::find(table, name, &NamedFilter::first);
    if (found != table.end()) return found->second;
  }
  return nullptr;
}

}  // namespace kvloom::jinja
