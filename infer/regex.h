// Regular expressions of tokenizers: Oniguruma's syntax and meaning, as Hugging Face's have them, run by PCRE2 (JIT).
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace kvloom {

struct Span {
  std::size_t begin;
  std::size_t end;
  bool empty() const { return begin == end; }
};

// The pattern as PCRE2 (with UTF and UCP) reads it: \s is White_Space, \w Unicode's words, \h a hexadecimal digit,
// \p{Han} a script without its extensions, {2}+ no possessive, ^ and $ those of lines. Throws InputError, with `where`,
// for what the two mean differently and this does not translate: negated sets within sets, intersections, \R, \X, \K,
// \G, calls, conditions, named groups, inline flags other than i.
std::string pcre2_pattern(std::string_view pattern, const std::string& where);

// The text so that it matches itself alone.
std::string escaped_pattern(std::string_view text);

class Regex {
 public:
  // Throws InputError, with `where`, when the pattern is none or is not translated.
  Regex(std::string_view pattern, const std::string& where);
  ~Regex();
  Regex(Regex&&) noexcept;

  // Appends the matches in well-formed UTF-8, left to right, none within another. An empty match right behind the last
  // one does not count. Throws Error when the pattern backtracks without end on this text. Thread-safe.
  void find_all(std::string_view text, std::vector<Span>& matches) const;

 private:
  struct Compiled;
  std::unique_ptr<const Compiled> compiled_;
  std::string where_;
};

}  // namespace kvloom
