#include <algorithm>
#include <array>
#include <cctype>
#include <string>
#include <utility>

#include "infer/regex.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

constexpr std::string_view kSpace = "White_Space";
constexpr std::string_view kWordSet = R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc})";
// Outside of a set, Oniguruma counts Latin-1's fractions and superscripts.
constexpr std::string_view kMoreWords = R"(\x{b2}\x{b3}\x{b9}\x{bc}-\x{be})";

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Property names compare without case, spaces, '-' and '_'.
std::string folded(std::string_view name) {
  std::string plain;
  for (const char c : name) {
    if (c != ' ' && c != '-' && c != '_') plain += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  }
  return plain;
}

// What Oniguruma and PCRE2 name differently, and what both know and is no script.
constexpr auto kProperties =
    std::to_array<std::pair<std::string_view, std::string_view>>({{"letter", "L"},
                                                                  {"mark", "M"},
                                                                  {"number", "N"},
                                                                  {"punctuation", "P"},
                                                                  {"symbol", "S"},
                                                                  {"separator", "Z"},
                                                                  {"other", "C"},
                                                                  {"uppercaseletter", "Lu"},
                                                                  {"lowercaseletter", "Ll"},
                                                                  {"titlecaseletter", "Lt"},
                                                                  {"modifierletter", "Lm"},
                                                                  {"otherletter", "Lo"},
                                                                  {"nonspacingmark", "Mn"},
                                                                  {"spacingmark", "Mc"},
                                                                  {"enclosingmark", "Me"},
                                                                  {"decimalnumber", "Nd"},
                                                                  {"letternumber", "Nl"},
                                                                  {"othernumber", "No"},
                                                                  {"connectorpunctuation", "Pc"},
                                                                  {"dashpunctuation", "Pd"},
                                                                  {"openpunctuation", "Ps"},
                                                                  {"closepunctuation", "Pe"},
                                                                  {"initialpunctuation", "Pi"},
                                                                  {"finalpunctuation", "Pf"},
                                                                  {"otherpunctuation", "Po"},
                                                                  {"mathsymbol", "Sm"},
                                                                  {"currencysymbol", "Sc"},
                                                                  {"modifiersymbol", "Sk"},
                                                                  {"othersymbol", "So"},
                                                                  {"spaceseparator", "Zs"},
                                                                  {"lineseparator", "Zl"},
                                                                  {"paragraphseparator", "Zp"},
                                                                  {"control", "Cc"},
                                                                  {"format", "Cf"},
                                                                  {"unassigned", "Cn"},
                                                                  {"privateuse", "Co"},
                                                                  {"any", "Any"},
                                                                  {"alpha", "Alphabetic"},
                                                                  {"alphabetic", "Alphabetic"},
                                                                  {"lower", "Lowercase"},
                                                                  {"lowercase", "Lowercase"},
                                                                  {"upper", "Uppercase"},
                                                                  {"uppercase", "Uppercase"},
                                                                  {"space", kSpace},
                                                                  {"whitespace", kSpace},
                                                                  {"digit", "Nd"},
                                                                  {"ideographic", "Ideographic"},
                                                                  {"emoji", "Emoji"},
                                                                  {"emojipresentation", "Emoji_Presentation"},
                                                                  {"extendedpictographic", "Extended_Pictographic"}});

constexpr std::string_view kCategories =
    " c cc cf cn co cs l ll lm lo lt lu m mc me mn n nd nl no p pc pd pe pf pi po ps s sc sk sm so z zl zp zs ";

// As PCRE2 writes it. A script is asked for by its own characters, not by its extensions.
std::string property_name(std::string_view name) {
  const std::string plain = folded(name);
  if (kCategories.find(' ' + plain + ' ') != std::string_view::npos) return std::string(name);
  const auto known = std::ranges::find(kProperties, plain, [](const auto& entry) { return entry.first; });
  return known != kProperties.end() ? std::string(known->second) : fmt::format("sc:{}", name);
}

class Translator {
 public:
  Translator(std::string_view pattern, const std::string& where) : pattern_(pattern), where_(where) {}

  std::string run() {
    if (pattern_.starts_with("(?i)")) copy(4);
    while (!done()) step();
    return std::move(out_);
  }

 private:
  bool done() const { return at_ == pattern_.size(); }
  bool next_is(std::string_view text) const { return pattern_.substr(at_).starts_with(text); }
  std::string_view rest() const { return pattern_.substr(at_); }
  void copy(std::size_t count) {
    out_ += rest().substr(0, count);
    at_ += std::min(count, rest().size());
  }

  [[noreturn]] void refuse(std::string_view what) const {
    reject_input("{}: regular expression '{}': {} at {} is not supported", where_, pattern_.substr(0, 200), what, at_);
  }

  void step() {
    const char c = pattern_[at_];
    if (c == '(') return open_group();
    if (c == ')') return close_group();
    if (c == '|' || c == '^' || c == '$') return copy(1);
    if (c == '*' || c == '+' || c == '?' || interval_length() > 0) return quantifier();
    atom_ = out_.size();
    if (c == '[') return set();
    if (c == '\\') return escape_outside();
    if (c == '{') {
      out_ += '\\';
    }
    do copy(1);
    while (!done() && (static_cast<unsigned char>(pattern_[at_]) & 0xc0) == 0x80);
  }

  void open_group() {
    groups_.push_back(out_.size());
    if (!next_is("(?")) return copy(1);
    for (const std::string_view known : {"(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!", "(?i:", "(?-i:"}) {
      if (next_is(known)) return copy(known.size());
    }
    refuse("a group of this kind");
  }

  void close_group() {
    if (groups_.empty()) refuse("')' without '('");
    atom_ = groups_.back();
    groups_.pop_back();
    copy(1);
  }

  // The length of "{2}", "{2,}", "{2,3}" or "{,3}" here; 0 when a brace is just a brace.
  std::size_t interval_length() const {
    if (done() || pattern_[at_] != '{') return 0;
    std::size_t end = at_ + 1;
    std::size_t digits = 0;
    std::size_t commas = 0;
    for (; end < pattern_.size() && (is_digit(pattern_[end]) || pattern_[end] == ','); ++end) {
      (pattern_[end] == ',' ? commas : digits) += 1;
    }
    const bool whole = end < pattern_.size() && pattern_[end] == '}' && digits > 0 && commas <= 1;
    return whole ? end + 1 - at_ : 0;
  }

  // "+" behind an interval and "?" behind "{2}" repeat it in Ruby's syntax; elsewhere they make it possessive or lazy.
  void quantifier() {
    if (atom_ == std::string::npos) refuse("a quantifier of nothing");
    for (bool first = true; next_is("*") || next_is("+") || next_is("?") || interval_length() > 0; first = false) {
      if (!first) {
        out_.insert(atom_, "(?:");
        out_ += ')';
      }
      if (interval_length() > 0) {
        interval();
      } else {
        copy(1);
        if (next_is("+") || next_is("?")) copy(1);
      }
    }
  }

  void interval() {
    std::size_t length = interval_length();
    const bool exact = rest().substr(0, length).find(',') == std::string_view::npos;
    if (next_is("{,")) {
      out_ += "{0";
      ++at_;
      --length;
    }
    copy(length);
    if (next_is("?") && !exact) copy(1);
  }

  void escape_outside() {
    if (at_ + 1 == pattern_.size()) refuse("'\\' at the end");
    const char c = pattern_[at_ + 1];
    const auto put = [this](std::string_view text) {
      out_ += text;
      at_ += 2;
    };
    const std::string word = std::string(kWordSet) + std::string(kMoreWords);
    if (c == 'w') return put('[' + word + ']');
    if (c == 'W') return put("[^" + word + ']');
    const std::string in = '[' + word + ']';
    if (c == 'b') return put("(?:(?<=" + in + ")(?!" + in + ")|(?<!" + in + ")(?=" + in + "))");
    if (c == 'B') return put("(?:(?<=" + in + ")(?=" + in + ")|(?<!" + in + ")(?!" + in + "))");
    if (c == 'h') return put("[0-9a-fA-F]");
    if (c == 'H') return put("[^0-9a-fA-F]");
    if (c == 'A' || c == 'z' || c == 'Z' || (c >= '1' && c <= '9')) return copy(2);
    escape_anywhere();
  }

  void escape_in_set() {
    if (at_ + 1 == pattern_.size()) refuse("'\\' at the end");
    const char c = pattern_[at_ + 1];
    if (c == 'w' || c == 'h') {
      out_ += c == 'w' ? kWordSet : "0-9a-fA-F";
      at_ += 2;
    } else if (c == 'b') {
      copy(2);
    } else {
      escape_anywhere();
    }
  }

  // Escapes that mean the same inside a set and outside.
  void escape_anywhere() {
    const char c = pattern_[at_ + 1];
    const auto byte = static_cast<unsigned char>(c);
    if (c == 'p' || c == 'P') return property();
    if (c == 'u') return code_point();
    if (c == 'x') return hexadecimal();
    if (c == 's' || c == 'S') {
      out_ += fmt::format("\\{}{{{}}}", c == 's' ? 'p' : 'P', kSpace);
      at_ += 2;
    } else if (c == 'v') {
      out_ += "\\x0b";
      at_ += 2;
    } else if (std::string_view("dDtnrfae0").find(c) != std::string_view::npos ||
               (byte < 0x80 && !std::isalnum(byte))) {
      copy(2);
    } else if (byte >= 0x80) {
      ++at_;
      copy(1);
    } else {
      refuse(fmt::format("'\\{}'", c));
    }
  }

  void property() {
    const bool braced = at_ + 2 < pattern_.size() && pattern_[at_ + 2] == '{';
    const std::size_t end = pattern_.find('}', at_);
    if (!braced || end == std::string_view::npos) refuse("a property without braces");
    std::string_view name = pattern_.substr(at_ + 3, end - at_ - 3);
    bool negative = pattern_[at_ + 1] == 'P';
    if (name.starts_with('^')) {
      negative = !negative;
      name.remove_prefix(1);
    }
    const auto is_name = [](char c) {
      return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == ' ' || c == '-';
    };
    if (name.empty() || !std::ranges::all_of(name, is_name)) refuse("this property");
    out_ += fmt::format("\\{}{{{}}}", negative ? 'P' : 'p', property_name(name));
    at_ = end + 1;
  }

  void code_point() {
    const std::string_view digits = rest().substr(std::min<std::size_t>(2, rest().size())).substr(0, 4);
    if (digits.size() != 4 || !std::ranges::all_of(digits, [](unsigned char d) { return std::isxdigit(d) != 0; })) {
      refuse("'\\u' without four digits");
    }
    out_ += fmt::format("\\x{{{}}}", digits);
    at_ += 6;
  }

  // Bytes above 0x7f, which are no characters of their own, only in braces.
  void hexadecimal() {
    if (next_is("\\x{")) return copy(std::min(rest().find('}'), rest().size() - 1) + 1);
    if (rest().size() < 3 || rest()[2] > '7' || !is_digit(rest()[2])) refuse("a byte by its number");
    copy(3);
    if (!done() && std::isxdigit(static_cast<unsigned char>(pattern_[at_])) != 0) copy(1);
  }

  void set() {
    copy(next_is("[^") ? 2 : 1);
    if (next_is("]")) {
      out_ += '\\';
      copy(1);
    }
    for (int depth = 1; depth > 0;) {
      if (done()) refuse("a set without an end");
      if (next_is("&&")) refuse("an intersection of sets");
      if (next_is("[")) {
        open_inner_set();
        ++depth;
      } else if (next_is("]")) {
        --depth;
        close_set(depth > 0);
      } else if (next_is("\\")) {
        escape_in_set();
      } else {
        copy(1);
      }
    }
  }

  // A set within a set adds to it, which PCRE2 has no brackets for. No range begins behind it.
  void open_inner_set() {
    if (next_is("[^") || next_is("[:") || next_is("[]")) refuse("such a set within a set");
    if (out_.ends_with('-') && !out_.ends_with("\\-")) refuse("a range up to a set");
    ++at_;
  }

  void close_set(bool is_inner) {
    if (!is_inner) return copy(1);
    ++at_;
    if (next_is("-")) out_ += '\\';
  }

  std::string_view pattern_;
  const std::string& where_;
  std::string out_;
  std::size_t at_ = 0;
  std::size_t atom_ = std::string::npos;  // where in `out_` the last thing starts that can be repeated
  std::vector<std::size_t> groups_;       // where in `out_` the open ones start
};

}  // namespace

std::string pcre2_pattern(std::string_view pattern, const std::string& where) {
  return Translator(pattern, where).run();
}

std::string escaped_pattern(std::string_view text) {
  std::string pattern;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x80 && std::isalnum(byte) == 0 && byte > 0x20) pattern += '\\';
    pattern += c;
  }
  return pattern;
}

}  // namespace kvloom
