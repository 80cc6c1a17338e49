// Predicates from two values.
#include "tests/support/ptx/actions.h"

namespace kvloom::ptx {
namespace {

// One more argument than the two that are compared is a predicate to combine with.
template <auto kCompare, typename T>
Action comparison(const Words& words) {
  constexpr auto kAlso = [](T a, T b, bool c) { return kCompare(a, b) && c; };
  constexpr auto kElse = [](T a, T b, bool c) { return kCompare(a, b) || c; };
  if (has(words, "and")) return &lanewise<kAlso, bool, T, T, bool>;
  if (has(words, "or")) return &lanewise<kElse, bool, T, T, bool>;
  if (words.size() > 3) return nullptr;
  return &lanewise<kCompare, bool, T, T>;
}

template <typename T>
Action comparison_between(const Words& words) {
  const std::string& how = words[1];
  constexpr auto kUnordered = [](T a, T b) { return a != a || b != b; };
  constexpr auto kEqual = [](T a, T b) { return a == b; };
  constexpr auto kNotEqual = [](T a, T b) { return a != b && a == a && b == b; };
  constexpr auto kLess = [](T a, T b) { return a < b; };
  constexpr auto kLessEqual = [](T a, T b) { return a <= b; };
  constexpr auto kGreater = [](T a, T b) { return a > b; };
  constexpr auto kGreaterEqual = [](T a, T b) { return a >= b; };
  if (how == "eq") return comparison<kEqual, T>(words);
  if (how == "ne") return comparison<kNotEqual, T>(words);
  if (how == "lt" || how == "lo") return comparison<kLess, T>(words);
  if (how == "le" || how == "ls") return comparison<kLessEqual, T>(words);
  if (how == "gt" || how == "hi") return comparison<kGreater, T>(words);
  if (how == "ge" || how == "hs") return comparison<kGreaterEqual, T>(words);
  if constexpr (std::floating_point<T>) {
    if (how == "nan") return comparison<kUnordered, T>(words);
    if (how == "equ") return comparison<[](T a, T b) { return !(a < b || a > b); }, T>(words);
    if (how == "neu") return comparison<[](T a, T b) { return a != b; }, T>(words);
    if (how == "ltu") return comparison<[](T a, T b) { return !(a >= b); }, T>(words);
    if (how == "leu") return comparison<[](T a, T b) { return !(a > b); }, T>(words);
    if (how == "gtu") return comparison<[](T a, T b) { return !(a <= b); }, T>(words);
    if (how == "geu") return comparison<[](T a, T b) { return !(a < b); }, T>(words);
    if (how == "num") return comparison<[](T a, T b) { return a == a && b == b; }, T>(words);
  }
  return nullptr;
}

}  // namespace

Action comparison_of(const Words& words) {
  if (has(words, "ftz")) return nullptr;
  return with_number(words.back(), [&](auto of) { return comparison_between<typename decltype(of)::Type>(words); });
}

}  // namespace kvloom::ptx
