// The methods of texts.
#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <span>

#include "infer/text/jinja_methods.h"
#include "infer/text/python_text.h"
#include "infer/unicode.h"

namespace kvloom::jinja {
namespace {

constexpr std::size_t kNowhere = std::string::npos;

bool among(std::string_view characters, std::string_view character) { return characters.find(character) != kNowhere; }

std::string_view left_trimmed(std::string_view text, std::string_view characters) {
  while (!text.empty() && among(characters, text.substr(0, first_character(text).bytes))) {
    text.remove_prefix(first_character(text).bytes);
  }
  return text;
}

std::string_view right_trimmed(std::string_view text, std::string_view characters) {
  while (!text.empty() && among(characters, text.substr(text.size() - last_character(text).bytes))) {
    text.remove_suffix(last_character(text).bytes);
  }
  return text;
}

Value strip(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const auto characters = optional_text("strip", bind("strip", arguments, {"chars"})[0]);
  if (!characters.has_value()) return runtime.text(std::string(stripped(self.text())));
  return runtime.text(std::string(right_trimmed(left_trimmed(self.text(), *characters), *characters)));
}

Value left_strip(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const auto characters = optional_text("lstrip", bind("lstrip", arguments, {"chars"})[0]);
  return runtime.text(std::string(characters ? left_trimmed(self.text(), *characters) : left_stripped(self.text())));
}

Value right_strip(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const auto characters = optional_text("rstrip", bind("rstrip", arguments, {"chars"})[0]);
  return runtime.text(std::string(characters ? right_trimmed(self.text(), *characters) : right_stripped(self.text())));
}

// The words between white space; the last one is all that is left after `most` cuts.
std::vector<std::string_view> words_of(std::string_view text, std::int64_t most) {
  std::vector<std::string_view> words;
  text = left_stripped(text);
  while (!text.empty()) {
    if (most >= 0 && static_cast<std::int64_t>(words.size()) == most) {
      words.push_back(text);
      break;
    }
    std::size_t end = 0;
    while (end < text.size() && left_stripped(text.substr(end)).size() == text.size() - end) {
      end += first_character(text.substr(end)).bytes;
    }
    words.push_back(text.substr(0, end));
    text = left_stripped(text.substr(end));
  }
  return words;
}

List texts_of(const std::vector<std::string_view>& texts) { return {texts.begin(), texts.end()}; }

Value split(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Bound given = bind("split", arguments, {"sep", "maxsplit"});
  const std::int64_t most = optional_integer("split", given[1]).value_or(-1);
  const auto separator = optional_text("split", given[0]);
  std::string_view text = self.text();
  if (!separator.has_value()) return runtime.list(texts_of(words_of(text, most)));
  if (separator->empty()) fault("empty separator");
  std::vector<std::string_view> parts;
  for (std::size_t at;
       (most < 0 || static_cast<std::int64_t>(parts.size()) < most) && (at = text.find(*separator)) != kNowhere;) {
    parts.push_back(text.substr(0, at));
    text.remove_prefix(at + separator->size());
  }
  parts.push_back(text);
  return runtime.list(texts_of(parts));
}

Value split_from_the_right(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Bound given = bind("rsplit", arguments, {"sep", "maxsplit"});
  const std::int64_t most = optional_integer("rsplit", given[1]).value_or(-1);
  const auto separator = optional_text("rsplit", given[0]);
  std::string_view text = self.text();
  std::vector<std::string_view> parts;
  if (!separator.has_value()) {
    parts = words_of(text, -1);
    if (most >= 0 && static_cast<std::int64_t>(parts.size()) > most) {
      const auto first = static_cast<std::size_t>(static_cast<std::int64_t>(parts.size()) - most);
      const char* end = parts[first - 1].data() + parts[first - 1].size();
      parts[first - 1] = {text.data(), static_cast<std::size_t>(end - text.data())};
      parts.erase(parts.begin(), parts.begin() + static_cast<std::ptrdiff_t>(first) - 1);
    }
    return runtime.list(texts_of(parts));
  }
  if (separator->empty()) fault("empty separator");
  for (std::size_t at;
       (most < 0 || static_cast<std::int64_t>(parts.size()) < most) && (at = text.rfind(*separator)) != kNowhere;) {
    parts.push_back(text.substr(at + separator->size()));
    text = text.substr(0, at);
  }
  parts.push_back(text);
  std::ranges::reverse(parts);
  return runtime.list(texts_of(parts));
}

Value split_lines(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const bool keeps = truth_argument(bind("splitlines", arguments, {"keepends"})[0], false);
  List lines;
  for (const std::string_view line : text_lines_of(self.text()))
    lines.emplace_back(keeps ? line : without_line_end(line));
  return runtime.list(std::move(lines));
}

Value partition(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const std::string separator = text_argument("partition", bind("partition", arguments, {"sep"}, 1)[0]);
  if (separator.empty()) fault("empty separator");
  const std::string& text = self.text();
  const std::size_t at = text.find(separator);
  if (at == kNowhere) return runtime.list({text, "", ""}, SequenceKind::kTuple);
  return runtime.list({text.substr(0, at), separator, text.substr(at + separator.size())}, SequenceKind::kTuple);
}

Value partition_from_the_right(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const std::string separator = text_argument("rpartition", bind("rpartition", arguments, {"sep"}, 1)[0]);
  if (separator.empty()) fault("empty separator");
  const std::string& text = self.text();
  const std::size_t at = text.rfind(separator);
  if (at == kNowhere) return runtime.list({"", "", text}, SequenceKind::kTuple);
  return runtime.list({text.substr(0, at), separator, text.substr(at + separator.size())}, SequenceKind::kTuple);
}

// Whether one of the texts fits: an argument is a text or a tuple of them.
template <typename Fits>
Value any_fits(std::string_view name, const Arguments& arguments, Fits fits) {
  const Value given = *bind(name, arguments, {"text"}, 1)[0];
  if (!given.is_sequence()) return fits(text_argument(name, given));
  return std::ranges::any_of(given.sequence().items,
                             [&](const Value& item) { return fits(text_argument(name, item)); });
}

Value starts_with(Runtime&, const Value& self, const Arguments& arguments) {
  return any_fits("startswith", arguments, [&](const std::string& text) { return self.text().starts_with(text); });
}

Value ends_with(Runtime&, const Value& self, const Arguments& arguments) {
  return any_fits("endswith", arguments, [&](const std::string& text) { return self.text().ends_with(text); });
}

Value replace(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Bound given = bind("replace", arguments, {"old", "new", "count"}, 2);
  return runtime.text(replaced(runtime, self.text(), text_argument("replace", given[0]),
                               text_argument("replace", given[1]), optional_integer("replace", given[2]).value_or(-1)));
}

Value without_prefix(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const std::string prefix = text_argument("removeprefix", bind("removeprefix", arguments, {"prefix"}, 1)[0]);
  const bool has = self.text().starts_with(prefix);
  return has ? runtime.text(self.text().substr(prefix.size())) : self;
}

Value without_suffix(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const std::string suffix = text_argument("removesuffix", bind("removesuffix", arguments, {"suffix"}, 1)[0]);
  const bool has = self.text().ends_with(suffix);
  return has ? runtime.text(self.text().substr(0, self.text().size() - suffix.size())) : self;
}

template <std::string (*kChange)(std::string_view)>
Value changed(Runtime& runtime, const Value& self, const Arguments& arguments) {
  bind("this method", arguments, {});
  return runtime.text(kChange(self.text()));
}

Value place_of(const Value& self, std::size_t byte) {
  if (byte == kNowhere) return -1;
  return count_characters(std::string_view(self.text()).substr(0, byte));
}

Value find(Runtime&, const Value& self, const Arguments& arguments) {
  return place_of(self, self.text().find(text_argument("find", bind("find", arguments, {"sub"}, 1)[0])));
}

Value find_from_the_right(Runtime&, const Value& self, const Arguments& arguments) {
  return place_of(self, self.text().rfind(text_argument("rfind", bind("rfind", arguments, {"sub"}, 1)[0])));
}

Value index(Runtime& runtime, const Value& self, const Arguments& arguments) {
  Value place = find(runtime, self, arguments);
  if (place.integer() < 0) fault("substring not found");
  return place;
}

Value count(Runtime&, const Value& self, const Arguments& arguments) {
  const std::string part = text_argument("count", bind("count", arguments, {"sub"}, 1)[0]);
  if (part.empty()) return count_characters(self.text()) + 1;
  std::int64_t found = 0;
  for (std::size_t at = self.text().find(part); at != kNowhere; at = self.text().find(part, at + part.size())) ++found;
  return found;
}

Value join(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const auto items = items_of(runtime, *bind("join", arguments, {"iterable"}, 1)[0]);
  std::string all;
  for (std::size_t i = 0; i < items->items.size(); ++i) {
    const Value& item = items->items[i];
    if (!item.is_text()) fault("sequence item {}: expected str instance, {} found", i, type_name(item));
    all += (i == 0 ? std::string() : self.text()) + item.text();
    runtime.check_bytes(all.size());
  }
  return runtime.text(std::move(all));
}

Value format(Runtime& runtime, const Value& self, const Arguments& arguments) {
  return runtime.text(brace_formatted(runtime, self.text(), arguments));
}

template <char kAlign>
Value padded(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Bound given = bind("this method", arguments, {"width", "fillchar"}, 1);
  const std::string fill = optional_text("this method", given[1]).value_or(" ");
  if (count_characters(fill) != 1) fault("The fill character must be exactly one character long");
  return runtime.text(padded_text(runtime, self.text(), integer_argument("this method", given[0]), kAlign, fill));
}

Value fill_with_zeros(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const std::int64_t width = integer_argument("zfill", bind("zfill", arguments, {"width"}, 1)[0]);
  const std::string& text = self.text();
  const std::size_t sign = text.starts_with('-') || text.starts_with('+') ? 1 : 0;
  const auto signs = static_cast<std::int64_t>(sign);
  const std::int64_t digits = width < signs ? 0 : width - signs;
  return runtime.text(text.substr(0, sign) + padded_text(runtime, text.substr(sign), digits, '>', "0"));
}

// Whether all characters are of a class, of which there is one at least.
template <bool (*kIs)(utf8proc_category_t)>
Value all_are(Runtime&, const Value& self, const Arguments&) {
  std::string_view text = self.text();
  const bool any = !text.empty();
  for (; !text.empty(); text.remove_prefix(first_character(text).bytes)) {
    if (!kIs(utf8proc_category(static_cast<utf8proc_int32_t>(first_character(text).code)))) return false;
  }
  return any;
}

bool is_letter(utf8proc_category_t category) {
  return category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
}
bool is_digit(utf8proc_category_t category) { return category == UTF8PROC_CATEGORY_ND; }
bool is_letter_or_digit(utf8proc_category_t category) { return is_letter(category) || is_digit(category); }

Value is_space(Runtime&, const Value& self, const Arguments&) {
  return !self.text().empty() && stripped(self.text()).empty();
}

bool is_upper(const std::string& text) { return text == uppercased(text) && text != lowercased(text); }
bool is_lower(const std::string& text) { return text == lowercased(text) && text != uppercased(text); }

Value is_upper_case(Runtime&, const Value& self, const Arguments&) { return is_upper(self.text()); }
Value is_lower_case(Runtime&, const Value& self, const Arguments&) { return is_lower(self.text()); }

constexpr std::array kOfTexts = std::to_array<NamedMethod>({
    {"strip", strip},
    {"lstrip", left_strip},
    {"rstrip", right_strip},
    {"split", split},
    {"rsplit", split_from_the_right},
    {"splitlines", split_lines},
    {"partition", partition},
    {"rpartition", partition_from_the_right},
    {"startswith", starts_with},
    {"endswith", ends_with},
    {"replace", replace},
    {"removeprefix", without_prefix},
    {"removesuffix", without_suffix},
    {"upper", changed<uppercased>},
    {"lower", changed<lowercased>},
    {"capitalize", changed<capitalized>},
    {"title", changed<title_cased>},
    {"find", find},
    {"rfind", find_from_the_right},
    {"index", index},
    {"count", count},
    {"join", join},
    {"format", format},
    {"ljust", padded<'<'>},
    {"rjust", padded<'>'>},
    {"center", padded<'^'>},
    {"zfill", fill_with_zeros},
    {"isalpha", all_are<is_letter>},
    {"isdigit", all_are<is_digit>},
    {"isdecimal", all_are<is_digit>},
    {"isnumeric", all_are<is_digit>},
    {"isalnum", all_are<is_letter_or_digit>},
    {"isspace", is_space},
    {"isupper", is_upper_case},
    {"islower", is_lower_case},
});

}  // namespace

std::span<const NamedMethod> text_methods() { return kOfTexts; }

std::string replaced(Runtime& runtime, std::string_view text, std::string_view old, std::string_view by,
                     std::int64_t most) {
  std::string result;
  const auto add = [&](std::string_view part) {
    result += part;
    runtime.check_bytes(result.size());
  };
  std::int64_t done = 0;
  while (most < 0 || done < most) {
    // An empty text stands before every character, and at the end.
    const std::size_t at = old.empty() ? (done == 0      ? 0
                                          : text.empty() ? kNowhere
                                                         : first_character(text).bytes)
                                       : text.find(old);
    if (at == kNowhere) break;
    add(text.substr(0, at));
    add(by);
    text.remove_prefix(at + old.size());
    ++done;
  }
  add(text);
  return result;
}

std::string padded_text(Runtime& runtime, const std::string& text, std::int64_t width, char align,
                        std::string_view fill) {
  const auto length = static_cast<std::int64_t>(count_characters(text));
  if (width <= length) return text;
  const std::int64_t room = width - length;
  runtime.check_bytes(static_cast<std::size_t>(room));
  // Python's: an odd one goes to the left where the width is odd.
  const std::int64_t left = align == '<' ? 0 : align == '>' ? room : room / 2 + (room & width & 1);
  std::string result;
  for (std::int64_t i = 0; i < left; ++i) result += fill;
  result += text;
  for (std::int64_t i = left; i < room; ++i) result += fill;
  return result;
}

}  // namespace kvloom::jinja
