// Values as text: Python's str, repr and json.dumps.
#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "infer/text/jinja_runtime.h"
#include "infer/unicode.h"

namespace kvloom::jinja {
namespace {

bool is_printable(char32_t code) {
  if (code == ' ') return true;
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(code));
  return category != UTF8PROC_CATEGORY_CN && category < UTF8PROC_CATEGORY_ZS;
}

// A text as Python writes it in its code.
std::string python_quoted(std::string_view text) {
  const bool has_single = text.find('\'') != std::string_view::npos;
  const char quote = has_single && text.find('"') == std::string_view::npos ? '"' : '\'';
  std::string result(1, quote);
  for (const std::string_view character : characters_of(text)) {
    const char32_t code = first_character(character).code;
    if (code == static_cast<char32_t>(quote) || code == '\\') {
      result += '\\';
      result += character;
    } else if (code == '\n' || code == '\r' || code == '\t') {
      result += code == '\n' ? "\\n" : code == '\r' ? "\\r" : "\\t";
    } else if (is_printable(code)) {
      result += character;
    } else {
      const auto number = static_cast<std::uint32_t>(code);
      result += number < 0x100     ? fmt::format("\\x{:02x}", number)
                : number < 0x10000 ? fmt::format("\\u{:04x}", number)
                                   : fmt::format("\\U{:08x}", number);
    }
  }
  return result + quote;
}

std::string in_brackets(SequenceKind kind, std::string items, std::size_t count) {
  switch (kind) {
    case SequenceKind::kTuple:
      return fmt::format("({}{})", items, count == 1 ? "," : "");
    case SequenceKind::kKeys:
      return fmt::format("dict_keys([{}])", items);
    case SequenceKind::kValues:
      return fmt::format("dict_values([{}])", items);
    case SequenceKind::kItems:
      return fmt::format("dict_items([{}])", items);
    default:
      return fmt::format("[{}]", items);
  }
}

std::string range_shown(const List& items) {
  if (items.empty()) return "range(0, 0)";
  const std::int64_t first = items.front().integer();
  const std::int64_t step = items.size() > 1 ? items[1].integer() - first : 1;
  const std::int64_t end = items.back().integer() + step;
  return step == 1 ? fmt::format("range({}, {})", first, end) : fmt::format("range({}, {}, {})", first, end, step);
}

class Represented {
 public:
  explicit Represented(Runtime& runtime) : runtime_(runtime) {}

  std::string of(const Value& value) {
    runtime_.charge(1);
    if (value.is_none()) return "None";
    if (value.is_undefined()) return "Undefined";
    if (value.is_bool()) return value.boolean() ? "True" : "False";
    if (value.is_integer()) return fmt::format("{}", value.integer());
    if (value.is_float()) return shown_number(value.number());
    if (value.is_text()) {
      runtime_.charge(value.text().size() / 8);
      return python_quoted(value.text());
    }
    if (value.is_object()) return fmt::format("<{}>", value.object()->type());
    return value.is_dict() ? of_dict(value.dict()) : of_sequence(value.sequence());
  }

 private:
  void append(std::string& all, const std::string& more) {
    all += more;
    runtime_.charge(more.size() / 8);
    runtime_.check_bytes(all.size());
  }

  std::string of_dict(const Dict& dict) {
    std::string all;
    for (const auto& [key, value] : dict.entries()) {
      append(all, fmt::format("{}{}: {}", all.empty() ? "" : ", ", of(key), of(value)));
    }
    return "{" + all + "}";
  }

  std::string of_sequence(const Sequence& sequence) {
    if (sequence.kind == SequenceKind::kGenerator) return "<generator object>";
    if (sequence.kind == SequenceKind::kRange) return range_shown(sequence.items);
    std::string all;
    for (const Value& item : sequence.items) append(all, (all.empty() ? "" : ", ") + of(item));
    return in_brackets(sequence.kind, std::move(all), sequence.items.size());
  }

  Runtime& runtime_;
};

class JsonWriter {
 public:
  JsonWriter(Runtime& runtime, const JsonStyle& style) : runtime_(runtime), style_(style) {}

  void write(const Value& value) {
    runtime_.charge(1);
    runtime_.check_bytes(out_.size());
    if (value.is_text()) {
      write_text(value.text());
    } else if (value.is_dict()) {
      write_dict(value.dict());
    } else if (is_list(value)) {
      write_list(value.sequence().items);
    } else {
      out_ += scalar(value);
    }
  }
  std::string take() { return std::move(out_); }

 private:
  static bool is_list(const Value& value) {
    return value.is_sequence() && value.sequence().kind <= SequenceKind::kTuple;
  }

  static std::string scalar(const Value& value) {
    if (value.is_none()) return "null";
    if (value.is_bool()) return value.boolean() ? "true" : "false";
    if (value.is_integer()) return fmt::format("{}", value.integer());
    if (!value.is_float()) fault("Object of type {} is not JSON serializable", type_name(value));
    const double number = value.number();
    if (std::isnan(number)) return "NaN";
    if (std::isinf(number)) return number < 0 ? "-Infinity" : "Infinity";
    return shown_number(number);
  }

  void write_text(const std::string& text) {
    runtime_.charge(text.size() / 8);
    out_ += '"';
    constexpr std::string_view kSpecial = "\"\\\n\r\t\f\b", kNames = "\"\\nrtfb";
    for (const std::string_view character : characters_of(text)) {
      const char32_t code = first_character(character).code;
      if (const std::size_t at = kSpecial.find(character); at != std::string_view::npos) {
        out_ += '\\';
        out_ += kNames[at];
      } else if (code < 0x20 || (style_.ascii && code > 0x7e)) {
        write_escape(code);
      } else {
        out_ += character;
      }
    }
    out_ += '"';
  }

  void write_escape(char32_t code) {
    const auto number = static_cast<std::uint32_t>(code);
    if (number < 0x10000) {
      out_ += fmt::format("\\u{:04x}", number);
    } else {
      out_ += fmt::format("\\u{:04x}\\u{:04x}", 0xd7c0 + (number >> 10), 0xdc00 + (number & 0x3ff));
    }
  }

  void begin_item(bool first) {
    if (!first) out_ += style_.between_items;
    break_line();
  }
  void break_line() {
    if (!style_.indent.has_value()) return;
    out_ += '\n';
    for (int i = 0; i < level_; ++i) out_ += *style_.indent;
    runtime_.check_bytes(out_.size());
  }

  void write_list(const List& items) {
    out_ += '[';
    ++level_;
    for (std::size_t i = 0; i < items.size(); ++i) {
      begin_item(i == 0);
      write(items[i]);
    }
    --level_;
    if (!items.empty()) break_line();
    out_ += ']';
  }

  static std::string key_of(const Value& key) { return key.is_text() ? key.text() : scalar(key); }

  void write_dict(const Dict& dict) {
    auto entries = dict.entries();
    runtime_.charge(entries.size());
    if (style_.sorted) {
      std::ranges::stable_sort(entries,
                               [&](const auto& a, const auto& b) { return compare(runtime_, "<", a.first, b.first); });
    }
    out_ += '{';
    ++level_;
    for (std::size_t i = 0; i < entries.size(); ++i) {
      begin_item(i == 0);
      write_text(key_of(entries[i].first));
      out_ += style_.between_key_and_value;
      write(entries[i].second);
    }
    --level_;
    if (!entries.empty()) break_line();
    out_ += '}';
  }

  Runtime& runtime_;
  const JsonStyle& style_;
  std::string out_;
  int level_ = 0;
};

}  // namespace

// The shortest digits that give the number back, with an exponent below -4 and from 16 on.
std::string shown_number(double number) {
  if (std::isnan(number)) return "nan";
  if (std::isinf(number)) return number < 0 ? "-inf" : "inf";
  std::array<char, 40> buffer;
  const char* begin = buffer.data();
  const char* end =
      std::to_chars(buffer.data(), buffer.data() + buffer.size(), number, std::chars_format::scientific).ptr;
  const std::string text(begin, end);
  const std::size_t e = text.find('e');
  const int exponent = std::stoi(text.substr(e + 1));
  if (exponent < -4 || exponent >= 16) return text;
  const char* last = std::to_chars(buffer.data(), buffer.data() + buffer.size(), number, std::chars_format::fixed).ptr;
  const std::string fixed(begin, last);
  return fixed.find('.') == std::string::npos ? fixed + ".0" : fixed;
}

std::string represented(Runtime& runtime, const Value& value) { return Represented(runtime).of(value); }

std::string shown(Runtime& runtime, const Value& value) {
  if (value.is_text()) return value.text();
  return value.is_undefined() ? std::string() : represented(runtime, value);
}

std::string as_json(Runtime& runtime, const Value& value, const JsonStyle& style) {
  JsonWriter writer(runtime, style);
  writer.write(value);
  return writer.take();
}

}  // namespace kvloom::jinja
