// Python's two ways to put values into a text, as far as templates use them.
#include <algorithm>
#include <charconv>
#include <cmath>

#include "infer/text/jinja_runtime.h"
#include "infer/unicode.h"

namespace kvloom::jinja {
namespace {

constexpr std::int64_t kWidest = 1000;

std::string padded(std::string text, std::int64_t width, char align, char fill = ' ') {
  const auto length = static_cast<std::int64_t>(count_characters(text));
  if (length >= width) return text;
  const auto room = static_cast<std::size_t>(width - length);
  if (align == '<') return text + std::string(room, fill);
  if (align == '>') return std::string(room, fill) + text;
  return std::string(room / 2, fill) + text + std::string(room - room / 2, fill);
}

// "%-5.2f": what stands between the sign and the letter.
struct Directive {
  bool left = false;
  bool zeros = false;
  bool plus = false;
  std::int64_t width = 0;
  std::int64_t precision = -1;
  char letter = 's';
};

std::int64_t read_number(std::string_view& rest) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), value);
  if (error == std::errc::result_out_of_range || value > kWidest) fault("format: a width above {}", kWidest);
  rest.remove_prefix(static_cast<std::size_t>(end - rest.data()));
  return value;
}

Directive read_directive(std::string_view& rest) {
  Directive directive;
  for (; !rest.empty() && std::string_view("-0+").find(rest[0]) != std::string_view::npos; rest.remove_prefix(1)) {
    directive.left = directive.left || rest[0] == '-';
    directive.zeros = directive.zeros || rest[0] == '0';
    directive.plus = directive.plus || rest[0] == '+';
  }
  directive.width = read_number(rest);
  if (rest.starts_with('.')) {
    rest.remove_prefix(1);
    directive.precision = read_number(rest);
  }
  if (rest.empty()) fault("incomplete format");
  directive.letter = rest[0];
  rest.remove_prefix(1);
  return directive;
}

std::string number_text(const Directive& directive, double number) {
  const int precision = directive.precision < 0 ? 6 : static_cast<int>(directive.precision);
  switch (directive.letter) {
    case 'e':
      return fmt::format("{:.{}e}", number, precision);
    case 'g':
      return fmt::format("{:.{}g}", number, std::max(precision, 1));
    default:
      return fmt::format("{:.{}f}", number, precision);
  }
}

std::string whole_text(const Directive& directive, const Value& value) {
  if (!value.is_number()) fault("%{} format: a number is required, not {}", directive.letter, type_name(value));
  if (!value.is_whole() && (directive.letter == 'x' || directive.letter == 'X')) {
    fault("%{} format: an integer is required, not {}", directive.letter, type_name(value));
  }
  if (value.is_float() && !(std::abs(value.number()) < 9e18)) fault("a number is too large");
  const std::int64_t number = value.is_whole() ? value.integer() : static_cast<std::int64_t>(value.number());
  if (directive.letter == 'x') return fmt::format("{:x}", number);
  return directive.letter == 'X' ? fmt::format("{:X}", number) : fmt::format("{}", number);
}

std::string one_formatted(Runtime& runtime, const Directive& directive, const Value& value) {
  std::string text;
  switch (directive.letter) {
    case 's':
    case 'r': {
      text = directive.letter == 's' ? shown(runtime, value) : represented(runtime, value);
      const auto characters = characters_of(text);
      if (directive.precision >= 0 && static_cast<std::size_t>(directive.precision) < characters.size()) {
        text.resize(
            static_cast<std::size_t>(characters[static_cast<std::size_t>(directive.precision)].data() - text.data()));
      }
      return padded(text, directive.width, directive.left ? '<' : '>');
    }
    case 'd':
    case 'i':
    case 'u':
    case 'x':
    case 'X':
      text = whole_text(directive, value);
      break;
    case 'f':
    case 'F':
    case 'e':
    case 'g':
      if (!value.is_number()) fault("must be real number, not {}", type_name(value));
      text = number_text(directive, value.number());
      break;
    default:
      fault("unsupported format character '{}'", static_cast<unsigned char>(directive.letter) < 0x80
                                                     ? std::string(1, directive.letter)
                                                     : std::string(kReplacementCharacter));
  }
  const bool negative = text.starts_with('-');
  std::string sign = negative ? "-" : directive.plus ? "+" : "";
  if (negative) text.erase(0, 1);
  const auto room = std::max<std::int64_t>(0, directive.width - static_cast<std::int64_t>(sign.size()));
  if (directive.zeros && !directive.left) text = padded(text, room, '>', '0');
  return padded(sign + text, directive.width, directive.left ? '<' : '>');
}

// The values of "%": a tuple's in turn, a dict's by name, or one.
class PercentValues {
 public:
  explicit PercentValues(const Value& values) : values_(values) {}

  Value next() {
    if (is_tuple()) {
      const List& items = values_.sequence().items;
      if (taken_ >= items.size()) fault("not enough arguments for format string");
      return items[taken_++];
    }
    if (taken_++ > 0) fault("not enough arguments for format string");
    return values_;
  }
  Value named(std::string_view name) {
    named_ = true;
    if (!values_.is_dict()) fault("format requires a mapping");
    const Value* found = values_.dict().find(name);
    if (found == nullptr) fault("'{}'", name);
    return *found;
  }
  void check_all_taken() const {
    const std::size_t count = is_tuple() ? values_.sequence().items.size() : 1;
    if (!named_ && !values_.is_dict() && taken_ < count) fault("not all arguments converted during string formatting");
  }

 private:
  bool is_tuple() const { return values_.is_sequence() && values_.sequence().kind == SequenceKind::kTuple; }

  const Value& values_;
  std::size_t taken_ = 0;
  bool named_ = false;
};

// A field's value: "name.attribute[key]".
Value field_value(Runtime& runtime, std::string_view field, const Arguments& arguments, std::size_t& automatic) {
  const std::size_t end = std::min(field.find_first_of(".["), field.size());
  const std::string_view name = field.substr(0, end);
  std::size_t place = 0;
  const bool is_number =
      !name.empty() && std::from_chars(name.data(), name.data() + name.size(), place).ptr == name.data() + name.size();
  Value value;
  if (name.empty() || is_number) {
    const std::size_t at = is_number ? place : automatic++;
    if (at >= arguments.positional.size()) fault("Replacement index {} out of range for positional args tuple", at);
    value = arguments.positional[at];
  } else {
    const auto found = std::ranges::find(arguments.named, name, [](const auto& entry) { return entry.first; });
    if (found == arguments.named.end()) fault("'{}'", name);
    value = found->second;
  }
  field.remove_prefix(end);
  if (field.empty()) return value;
  if (field.starts_with('.')) return attribute_of(runtime, value, field.substr(1));
  if (!field.ends_with(']')) fault("expected ']' before end of string");
  const std::string_view key = field.substr(1, field.size() - 2);
  const bool is_place = std::from_chars(key.data(), key.data() + key.size(), place).ptr == key.data() + key.size();
  return item_of(runtime, value, is_place && !key.empty() ? Value(place) : Value(key));
}

std::string spec_formatted(Runtime& runtime, const Value& value, std::string_view spec) {
  if (spec.empty()) return shown(runtime, value);
  char align = value.is_number() ? '>' : '<';
  if (std::string_view("<>^").find(spec[0]) != std::string_view::npos) {
    align = spec[0];
    spec.remove_prefix(1);
  }
  std::string rest = std::string(spec);
  const bool has_letter = !rest.empty() && std::isalpha(static_cast<unsigned char>(rest.back()));
  if (!has_letter) rest += value.is_float() ? 'g' : value.is_whole() ? 'd' : 's';
  std::string_view view = rest;
  Directive directive = read_directive(view);
  if (!view.empty()) fault("Invalid format specifier '{}'", spec);
  if (!has_letter && value.is_float() && directive.precision < 0)
    return padded(shown(runtime, value), directive.width, align);
  const std::int64_t width = directive.zeros ? 0 : std::exchange(directive.width, 0);
  return padded(one_formatted(runtime, directive, value), width, align);
}

}  // namespace

std::string percent_formatted(Runtime& runtime, const std::string& format, const Value& values) {
  PercentValues taken(values);
  std::string result;
  std::string_view rest = format;
  while (!rest.empty()) {
    const std::size_t plain = std::min(rest.find('%'), rest.size());
    result += rest.substr(0, plain);
    if (plain == rest.size()) break;
    rest.remove_prefix(plain + 1);
    if (rest.starts_with('%')) {
      result += '%';
      rest.remove_prefix(1);
      continue;
    }
    std::optional<Value> named;
    if (rest.starts_with('(')) {
      const std::size_t close = rest.find(')');
      if (close == std::string_view::npos) fault("incomplete format key");
      named = taken.named(rest.substr(1, close - 1));
      rest.remove_prefix(close + 1);
    }
    const Directive directive = read_directive(rest);
    result += one_formatted(runtime, directive, named.has_value() ? *named : taken.next());
    runtime.check_bytes(result.size());
    runtime.charge(4);
  }
  taken.check_all_taken();
  return result;
}

std::string brace_formatted(Runtime& runtime, const std::string& format, const Arguments& arguments) {
  std::string result;
  std::string_view rest = format;
  std::size_t automatic = 0;
  while (!rest.empty()) {
    const std::size_t plain = std::min(rest.find_first_of("{}"), rest.size());
    result += rest.substr(0, plain);
    rest.remove_prefix(plain);
    if (rest.empty()) break;
    if (rest.starts_with("{{") || rest.starts_with("}}")) {
      result += rest[0];
      rest.remove_prefix(2);
      continue;
    }
    const std::size_t close = rest.find('}');
    if (rest[0] == '}' || close == std::string_view::npos) fault("Single '{}' encountered in format string", rest[0]);
    const std::string_view field = rest.substr(1, close - 1);
    if (field.find_first_of("{!") != std::string_view::npos) fault("format: the field '{}' is not supported", field);
    rest.remove_prefix(close + 1);
    const std::size_t colon = std::min(field.find(':'), field.size());
    const Value value = field_value(runtime, field.substr(0, colon), arguments, automatic);
    result += spec_formatted(runtime, value, field.substr(std::min(colon + 1, field.size())));
    runtime.check_bytes(result.size());
    runtime.charge(4);
  }
  return result;
}

}  // namespace kvloom::jinja
