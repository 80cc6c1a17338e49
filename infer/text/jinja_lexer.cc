#include "infer/text/jinja_lexer.h"

#include <algorithm>
#include <array>
#include <cctype>

#include "infer/text/python_text.h"
#include "infer/unicode.h"

namespace kvloom::jinja {
namespace {

// One kind of newline, and none at the end.
std::string with_plain_newlines(std::string_view source) {
  std::string text;
  for (std::size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r' && i + 1 < source.size() && source[i + 1] == '\n') continue;
    text += source[i] == '\r' ? '\n' : source[i];
  }
  if (text.ends_with('\n')) text.pop_back();
  return text;
}

bool is_name_start(char c) { return std::isalpha(static_cast<unsigned char>(c)) || c == '_' || (c & 0x80) != 0; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_name_part(char c) { return is_name_start(c) || is_digit(c); }

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(with_plain_newlines(source)), rest_(source_) {}

  std::vector<Token> run() {
    while (!rest_.empty()) lex_text();
    add(TokenKind::kEnd, {});
    return std::move(tokens_);
  }

 private:
  void add(TokenKind kind, std::string text) { tokens_.push_back({kind, std::move(text), line_}); }

  std::string_view take(std::size_t bytes) {
    const std::string_view taken = rest_.substr(0, bytes);
    line_ += static_cast<int>(std::ranges::count(taken, '\n'));
    rest_.remove_prefix(bytes);
    return taken;
  }
  void skip_space() { take(rest_.size() - left_stripped(rest_).size()); }

  // Text up to the next tag, and what that tag leaves of it: `sign` is the character behind the tag's beginning.
  void add_text(std::string_view text, char sign, bool is_block) {
    if (sign == '-') {
      text = right_stripped(text);
    } else if (sign != '+' && is_block) {
      const std::size_t newline = text.rfind('\n');
      const std::size_t line = newline == std::string_view::npos ? 0 : newline + 1;
      if ((line > 0 || line_starts_) && stripped(text.substr(line)).empty()) text = text.substr(0, line);
    }
    if (!text.empty()) add(TokenKind::kText, std::string(text));
  }

  static std::size_t find_tag(std::string_view text) {
    for (std::size_t at = text.find('{'); at != std::string_view::npos; at = text.find('{', at + 1)) {
      if (at + 1 < text.size() && std::string_view("{%#").find(text[at + 1]) != std::string_view::npos) return at;
    }
    return text.size();
  }

  void lex_text() {
    const std::string_view text = rest_.substr(0, find_tag(rest_));
    if (text.size() == rest_.size()) {
      add_text(take(text.size()), '+', false);
      return;
    }
    const char kind = rest_[text.size() + 1];
    const std::string_view behind = rest_.substr(text.size() + 2);
    const char sign = !behind.empty() && (behind[0] == '-' || behind[0] == '+') ? behind[0] : ' ';
    add_text(text, sign, kind != '{');
    take(text.size());
    const int begin = line_;
    take(2 + (sign == ' ' ? 0 : 1));
    line_starts_ = false;
    if (kind == '#') return skip_comment(begin);
    if (kind == '%' && lex_raw(begin)) return;
    add(kind == '%' ? TokenKind::kBlockBegin : TokenKind::kVariableBegin, {});
    lex_tag(kind == '%' ? "%}" : "}}", begin);
  }

  // Behind a tag's closing characters: `-` takes all white space, a block one newline, `+` nothing.
  void close(char sign, bool is_block) {
    if (sign == '-') {
      const std::size_t before = rest_.size();
      skip_space();
      line_starts_ = before != rest_.size() && rest_.data()[-1] == '\n';
    } else if (is_block && sign != '+' && rest_.starts_with('\n')) {
      take(1);
      line_starts_ = true;
    }
  }

  void skip_comment(int begin) {
    const std::size_t end = rest_.find("#}");
    if (end == std::string_view::npos) reject_syntax(begin, "a comment has no end; right is '#}}' behind it");
    const char sign = end > 0 && (rest_[end - 1] == '-' || rest_[end - 1] == '+') ? rest_[end - 1] : ' ';
    take(end + 2);
    close(sign, true);
  }

  // At "raw -%}", which stands behind "{%": the text up to its endraw.
  bool lex_raw(int begin) {
    std::string_view behind = left_stripped(rest_);
    if (!behind.starts_with("raw")) return false;
    behind = left_stripped(behind.substr(3));
    const bool strips = behind.starts_with("-%}");
    if (!strips && !behind.starts_with("%}")) return false;
    take(static_cast<std::size_t>(behind.data() - rest_.data()) + (strips ? 3 : 2));
    if (strips) skip_space();
    line_starts_ = strips && rest_.data()[-1] == '\n';
    for (std::size_t at = rest_.find("{%"); at != std::string_view::npos; at = rest_.find("{%", at + 1)) {
      std::string_view tag = rest_.substr(at + 2);
      const char sign = !tag.empty() && (tag[0] == '-' || tag[0] == '+') ? tag[0] : ' ';
      tag = left_stripped(tag.substr(sign == ' ' ? 0 : 1));
      if (!tag.starts_with("endraw")) continue;
      tag = left_stripped(tag.substr(6));
      const char end = !tag.empty() && (tag[0] == '-' || tag[0] == '+') ? tag[0] : ' ';
      if (!tag.substr(end == ' ' ? 0 : 1).starts_with("%}")) continue;
      add_text(rest_.substr(0, at), sign, true);
      take(static_cast<std::size_t>(tag.data() - rest_.data()) + (end == ' ' ? 2 : 3));
      line_starts_ = false;
      close(end, true);
      return true;
    }
    reject_syntax(begin, "raw has no end; right is an endraw behind it");
  }

  void lex_tag(std::string_view end, int begin) {
    const bool is_block = end == "%}";
    while (true) {
      skip_space();
      if (rest_.empty()) reject_syntax(begin, "a tag has no end; right is '{}' behind it", end);
      if (open_.empty()) {
        const char sign = rest_[0] == '-' || (rest_[0] == '+' && is_block) ? rest_[0] : ' ';
        if (rest_.substr(sign == ' ' ? 0 : 1).starts_with(end)) {
          add(is_block ? TokenKind::kBlockEnd : TokenKind::kVariableEnd, {});
          take(sign == ' ' ? 2 : 3);
          return close(sign, is_block);
        }
      }
      lex_token();
    }
  }

  void lex_token() {
    if (is_digit(rest_[0])) return lex_number();
    if (rest_[0] == '\'' || rest_[0] == '"') return lex_string();
    if (is_name_start(rest_[0])) {
      const auto end = std::ranges::find_if_not(rest_, is_name_part);
      const auto bytes = static_cast<std::size_t>(end - rest_.begin());
      add(TokenKind::kName, std::string(rest_.substr(0, bytes)));
      take(bytes);
      return;
    }
    lex_operator();
  }

  void lex_operator() {
    constexpr std::array<std::string_view, 6> kPairs = {"//", "**", "==", "!=", ">=", "<="};
    constexpr std::string_view kSingles = "+-/*%~[](){}<>=.:|,;";
    const bool is_pair = std::ranges::find(kPairs, rest_.substr(0, 2)) != kPairs.end();
    const std::string text(rest_.substr(0, is_pair ? 2 : 1));
    if (!is_pair && kSingles.find(rest_[0]) == std::string_view::npos) {
      reject_syntax(line_, "unexpected character '{}'", rest_.substr(0, first_character(rest_).bytes));
    }
    if (text == "(" || text == "[" || text == "{") open_ += text == "(" ? ')' : text == "[" ? ']' : '}';
    if (text == ")" || text == "]" || text == "}") {
      if (open_.empty()) reject_syntax(line_, "unexpected '{}'", text);
      if (open_.back() != text[0]) reject_syntax(line_, "unexpected '{}'; right is '{}'", text, open_.back());
      open_.pop_back();
    }
    add(TokenKind::kOperator, text);
    take(text.size());
  }

  // The bytes of digits at `at`, with single underscores between them.
  std::size_t digits_at(std::size_t at) const {
    std::size_t end = at;
    while (end < rest_.size() && (is_digit(rest_[end]) || (rest_[end] == '_' && end > at && rest_[end - 1] != '_' &&
                                                           end + 1 < rest_.size() && is_digit(rest_[end + 1])))) {
      ++end;
    }
    return end - at;
  }

  void lex_number() {
    std::size_t end = digits_at(0);
    bool is_float = false;
    const bool is_part = !tokens_.empty() && tokens_.back().kind == TokenKind::kOperator && tokens_.back().text == ".";
    if (!is_part && end < rest_.size() && rest_[end] == '.' && digits_at(end + 1) > 0) {
      end += 1 + digits_at(end + 1);
      is_float = true;
    }
    if (!is_part && end < rest_.size() && (rest_[end] == 'e' || rest_[end] == 'E')) {
      const std::size_t sign = end + 1 < rest_.size() && (rest_[end + 1] == '-' || rest_[end + 1] == '+') ? 1 : 0;
      if (const std::size_t digits = digits_at(end + 1 + sign); digits > 0) {
        end += 1 + sign + digits;
        is_float = true;
      }
    }
    std::string text(rest_.substr(0, end));
    std::erase(text, '_');
    add(is_float ? TokenKind::kFloat : TokenKind::kInteger, std::move(text));
    take(end);
  }

  void lex_string() {
    const int begin = line_;
    std::size_t end = 1;
    while (end < rest_.size() && rest_[end] != rest_[0]) end += rest_[end] == '\\' ? 2 : 1;
    if (end >= rest_.size()) reject_syntax(begin, "a string has no end; right is {} behind it", rest_[0]);
    add(TokenKind::kString, unescaped(rest_.substr(1, end - 1), begin));
    take(end + 1);
  }

  static std::string unescaped(std::string_view text, int line) {
    std::string value;
    while (!text.empty()) {
      const std::size_t plain = std::min(text.find('\\'), text.size());
      value += text.substr(0, plain);
      text.remove_prefix(plain);
      if (!text.empty()) append_escape(text, value, line);
    }
    return value;
  }

  // Python's escapes; `text` begins with the backslash, and a character follows.
  static void append_escape(std::string_view& text, std::string& value, int line) {
    constexpr std::string_view kNames = "abfnrtv\\'\"", kValues = "\a\b\f\n\r\t\v\\'\"";
    const char name = text[1];
    if (const std::size_t at = kNames.find(name); at != std::string_view::npos) {
      value += kValues[at];
      text.remove_prefix(2);
    } else if (name == '\n') {
      text.remove_prefix(2);
    } else if (name == 'x' || name == 'u' || name == 'U') {
      const std::size_t digits = name == 'x' ? 2 : name == 'u' ? 4 : 8;
      append_code(text.substr(2, digits), digits, 16, value, line);
      text.remove_prefix(2 + digits);
    } else if (name >= '0' && name <= '7') {
      std::size_t digits = 1;
      while (digits < 3 && digits + 1 < text.size() && text[digits + 1] >= '0' && text[digits + 1] <= '7') ++digits;
      append_code(text.substr(1, digits), digits, 8, value, line);
      text.remove_prefix(1 + digits);
    } else {
      value += '\\';
      text.remove_prefix(1);
    }
  }

  static void append_code(std::string_view digits, std::size_t expected, int base, std::string& value, int line) {
    std::uint32_t code = 0;
    bool right = digits.size() == expected;
    for (const char c : digits) {
      right = right && std::isxdigit(static_cast<unsigned char>(c)) != 0;
      const int digit = is_digit(c) ? c - '0' : (c | 0x20) - 'a' + 10;
      code = code * static_cast<std::uint32_t>(base) + static_cast<std::uint32_t>(digit);
    }
    right = right && code <= 0x10ffff && (code < 0xd800 || code > 0xdfff);
    if (!right) reject_syntax(line, "a string has an escape that is no character");
    append_character(value, code);
  }

  std::string source_;
  std::string_view rest_;
  int line_ = 1;
  bool line_starts_ = true;  // whether the character before `rest_`, within a tag, is a newline
  std::string open_;         // brackets that must close before the tag ends
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> lex(std::string_view source) {
  if (!is_well_formed(source)) reject_input("is no UTF-8");
  return Lexer(source).run();
}

}  // namespace kvloom::jinja
