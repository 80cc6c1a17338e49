// What lanes do each for itself, in registers.
#include "tests/support/ptx/actions.h"

#include <cfenv>
#include <cmath>
#include <limits>
#include <utility>

#include "kernels/dtype.h"

namespace kvloom::ptx {
namespace {

// to = kOf(from...), for each lane.
template <auto kOf, typename To, typename... From>
void lanewise(const Step& step, Warp& warp, std::uint32_t lanes) {
  Row& to = warp.row(step.to[0]);
  [&]<std::size_t... kIndex>(std::index_sequence<kIndex...>) {
    const Row* from[] = {&warp.row(step.from[kIndex])...};
    for_lanes(lanes, [&](std::size_t lane) {
      to[lane] = bits_of(static_cast<To>(kOf(value_of<From>((*from[kIndex])[lane])...)));
    });
  }
  (std::index_sequence_for<From...>{});
}

// Arithmetic without overflow that C++ would not define.
template <typename T>
auto wrapping(T value) {
  if constexpr (std::integral<T>) {
    return static_cast<std::uint64_t>(value);
  } else {
    return value;
  }
}

constexpr auto kAdd = []<typename T>(T a, T b) { return static_cast<T>(wrapping(a) + wrapping(b)); };
constexpr auto kSubtract = []<typename T>(T a, T b) { return static_cast<T>(wrapping(a) - wrapping(b)); };
constexpr auto kMultiply = []<typename T>(T a, T b) { return static_cast<T>(wrapping(a) * wrapping(b)); };
constexpr auto kMultiplyAdd = []<typename T>(T a, T b, T c) {
  return static_cast<T>(wrapping(a) * wrapping(b) + wrapping(c));
};
constexpr auto kFused = []<typename T>(T a, T b, T c) { return std::fma(a, b, c); };
constexpr auto kFusedDown = [](float a, float b, float c) {
  std::fesetround(FE_DOWNWARD);
  volatile float x = a;
  const volatile float result = std::fma(x, b, c);
  std::fesetround(FE_TONEAREST);
  return static_cast<float>(result);
};
constexpr auto kDivide = []<typename T>(T a, T b) {
  if constexpr (std::integral<T>) {
    if (b == 0) return std::numeric_limits<T>::max();
  }
  return static_cast<T>(a / b);
};
constexpr auto kRemainder = []<typename T>(T a, T b) { return b == 0 ? a : static_cast<T>(a % b); };
constexpr auto kMinimum = []<typename T>(T a, T b) {
  if constexpr (std::floating_point<T>) {
    return std::fmin(a, b);
  } else {
    return a < b ? a : b;
  }
};
constexpr auto kMaximum = []<typename T>(T a, T b) {
  if constexpr (std::floating_point<T>) {
    return std::fmax(a, b);
  } else {
    return a > b ? a : b;
  }
};
constexpr auto kNegate = []<typename T>(T a) {
  if constexpr (std::integral<T>) {
    return static_cast<T>(0 - wrapping(a));
  } else {
    return -a;
  }
};
constexpr auto kAbsolute = []<typename T>(T a) { return static_cast<T>(a < 0 ? -a : a + T{}); };
constexpr auto kFloatAbsolute = []<typename T>(T a) { return std::fabs(a); };
constexpr auto kRoot = []<typename T>(T a) { return std::sqrt(a); };
constexpr auto kReciprocal = []<typename T>(T a) { return 1 / a; };
constexpr auto kReciprocalRoot = []<typename T>(T a) { return 1 / std::sqrt(a); };
constexpr auto kPowerOfTwo = [](float a) { return std::exp2(a); };
constexpr auto kFlushedPowerOfTwo = [](float a) {
  const float result = std::exp2(std::fabs(a) < std::numeric_limits<float>::min() ? 0.0f : a);
  return result < std::numeric_limits<float>::min() ? 0.0f : result;
};
constexpr auto kLogarithm = [](float a) { return std::log2(a); };
constexpr auto kAnd = []<typename T>(T a, T b) { return static_cast<T>(a & b); };
constexpr auto kOr = []<typename T>(T a, T b) { return static_cast<T>(a | b); };
constexpr auto kXor = []<typename T>(T a, T b) { return static_cast<T>(a ^ b); };
constexpr auto kNot = []<typename T>(T a) { return static_cast<T>(~a); };
constexpr auto kSame = []<typename T>(T a) { return a; };
constexpr auto kSelect = []<typename T>(T a, T b, bool first) { return first ? a : b; };
constexpr auto kShiftLeft = []<typename T>(T a, std::uint32_t by) {
  return by >= 8 * sizeof(T) ? T{} : static_cast<T>(wrapping(a) << by);
};
constexpr auto kShiftRight = []<typename T>(T a, std::uint32_t by) {
  if (by < 8 * sizeof(T)) return static_cast<T>(a >> by);
  return static_cast<T>(a < T{} ? ~T{} : T{});
};
constexpr auto kCountBits = []<typename T>(T a) { return static_cast<std::uint32_t>(std::popcount(a)); };
constexpr auto kLeadingZeros = []<typename T>(T a) { return static_cast<std::uint32_t>(std::countl_zero(a)); };
constexpr auto kInsert = []<typename T>(T a, T b, std::uint32_t at, std::uint32_t count) {
  const T mask = static_cast<T>(count >= 8 * sizeof(T) ? ~T{} : static_cast<T>((T{1} << count) - 1) << at);
  return static_cast<T>((b & ~mask) | (static_cast<T>(a << at) & mask));
};
constexpr auto kExtract = []<typename T>(T a, std::uint32_t at, std::uint32_t count) {
  const T shifted = static_cast<T>(at >= 8 * sizeof(T) ? T{} : a >> at);
  return static_cast<T>(count >= 8 * sizeof(T) ? shifted : shifted & ((T{1} << count) - 1));
};
constexpr auto kPermute = [](std::uint32_t a, std::uint32_t b, std::uint32_t selectors) {
  const std::uint64_t bytes = std::uint64_t{b} << 32 | a;
  std::uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const std::uint32_t selector = selectors >> (4 * i) & 15u;
    auto byte = static_cast<std::uint32_t>(bytes >> (8 * (selector & 7u)) & 0xffu);
    if (selector & 8u) byte = byte & 0x80u ? 0xffu : 0u;
    result |= byte << (8 * i);
  }
  return result;
};
constexpr auto kSaturate = [](float a) { return a > 0 ? std::fmin(a, 1.0f) : 0.0f; };

template <auto kOf, std::size_t kOperands, typename T>
Action same_types() {
  return []<std::size_t... kIndex>(std::index_sequence<kIndex...>) {
    return static_cast<Action>(
        &lanewise<kOf, T, std::conditional_t<true, T, Of<std::integral_constant<std::size_t, kIndex>>>...>);
  }
  (std::make_index_sequence<kOperands>{});
}
template <auto kOf, std::size_t kOperands>
Action number_action(const std::string& type) {
  return with_number(type, [](auto of) { return same_types<kOf, kOperands, typename decltype(of)::Type>(); });
}
template <auto kOf, std::size_t kOperands>
Action integer_action(const std::string& type) {
  return with_integer(type, [](auto of) { return same_types<kOf, kOperands, typename decltype(of)::Type>(); });
}
template <auto kOf, std::size_t kOperands>
Action float_action(const std::string& type) {
  return with_float(type, [](auto of) { return same_types<kOf, kOperands, typename decltype(of)::Type>(); });
}

template <typename T>
struct Twice;
template <>
struct Twice<std::int32_t> : Of<std::int64_t> {};
template <>
struct Twice<std::uint32_t> : Of<std::uint64_t> {};
template <>
struct Twice<std::int16_t> : Of<std::int32_t> {};
template <>
struct Twice<std::uint16_t> : Of<std::uint32_t> {};

Action product(const Words& words, bool adds) {
  const std::string& type = words.back();
  if (has(words, "wide")) {
    return with_integer(type, [&](auto of) -> Action {
      using T = typename decltype(of)::Type;
      if constexpr (sizeof(T) < 8) {
        using Wide = typename Twice<T>::Type;
        constexpr auto kWide = [](T a, T b) { return static_cast<Wide>(static_cast<Wide>(a) * static_cast<Wide>(b)); };
        constexpr auto kWideAdd = [](T a, T b, Wide c) {
          return static_cast<Wide>(wrapping(static_cast<Wide>(a) * static_cast<Wide>(b)) + wrapping(c));
        };
        if (adds) return &lanewise<kWideAdd, Wide, T, T, Wide>;
        return &lanewise<kWide, Wide, T, T>;
      }
      return nullptr;
    });
  }
  if (has(words, "hi")) {
    if (adds) return nullptr;
    return with_integer(type, [](auto of) -> Action {
      using T = typename decltype(of)::Type;
      using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
      constexpr auto kHigh = [](T a, T b) {
        return static_cast<T>((static_cast<Wide>(a) * static_cast<Wide>(b)) >> (8 * sizeof(T)));
      };
      return &lanewise<kHigh, T, T, T>;
    });
  }
  if (adds) return integer_action<kMultiplyAdd, 3>(type);
  return number_action<kMultiply, 2>(type);
}

Action shift(const Words& words) {
  const bool is_left = words[0] == "shl";
  return with_integer(words.back(), [&](auto of) -> Action {
    using T = typename decltype(of)::Type;
    if (is_left) return &lanewise<kShiftLeft, T, T, std::uint32_t>;
    return &lanewise<kShiftRight, T, T, std::uint32_t>;
  });
}

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
Action comparison_of(const Words& words) {
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

Action set_predicate(const Words& words) {
  if (has(words, "ftz")) return nullptr;
  return with_number(words.back(), [&](auto of) { return comparison_of<typename decltype(of)::Type>(words); });
}

std::uint16_t bf16_of(float value) { return BFloat16(value).bits; }
constexpr auto kToBf16 = [](float a) { return bf16_of(a); };
constexpr auto kToBf16Pair = [](float high, float low) { return std::uint32_t{bf16_of(high)} << 16 | bf16_of(low); };
constexpr auto kFromBf16 = [](std::uint16_t bits) { return std::bit_cast<float>(std::uint32_t{bits} << 16); };
constexpr auto kToHalf = [](float a) { return std::bit_cast<std::uint16_t>(static_cast<_Float16>(a)); };
constexpr auto kFromHalf = [](std::uint16_t bits) { return static_cast<float>(std::bit_cast<_Float16>(bits)); };

enum class Rounding { kNone, kNearest, kDown, kUp, kToZero };

template <typename To, typename From, Rounding kRounding>
To converted(From value) {
  if constexpr (std::floating_point<From>) {
    From rounded = value;
    if constexpr (kRounding == Rounding::kNearest && (std::integral<To> || sizeof(To) >= sizeof(From))) {
      rounded = std::nearbyint(value);
    }
    if constexpr (kRounding == Rounding::kDown) rounded = std::floor(value);
    if constexpr (kRounding == Rounding::kUp) rounded = std::ceil(value);
    if constexpr (kRounding == Rounding::kToZero) rounded = std::trunc(value);
    if constexpr (std::integral<To>) {
      if (rounded != rounded) return To{};
      if (rounded <= static_cast<From>(std::numeric_limits<To>::min())) return std::numeric_limits<To>::min();
      if (rounded >= static_cast<From>(std::numeric_limits<To>::max())) return std::numeric_limits<To>::max();
    }
    return static_cast<To>(rounded);
  } else {
    return static_cast<To>(value);
  }
}

template <typename To, typename From>
Action conversion_between(const Words& words) {
  constexpr auto kPlain = [](From a) { return converted<To, From, Rounding::kNone>(a); };
  constexpr auto kNearest = [](From a) { return converted<To, From, Rounding::kNearest>(a); };
  constexpr auto kDown = [](From a) { return converted<To, From, Rounding::kDown>(a); };
  constexpr auto kUp = [](From a) { return converted<To, From, Rounding::kUp>(a); };
  constexpr auto kToZero = [](From a) { return converted<To, From, Rounding::kToZero>(a); };
  if (has(words, "rni")) return &lanewise<kNearest, To, From>;
  if (has(words, "rmi")) return &lanewise<kDown, To, From>;
  if (has(words, "rpi")) return &lanewise<kUp, To, From>;
  if (has(words, "rzi")) return &lanewise<kToZero, To, From>;
  // What C++ rounds, too: to the nearest.
  return &lanewise<kPlain, To, From>;
}

Action with_byte_too(const std::string& type, auto&& body) {
  if (type == "u8" || type == "b8") return body(Of<std::uint8_t>{});
  if (type == "s8") return body(Of<std::int8_t>{});
  return with_number(type, body);
}

Action conversion(const Words& words) {
  const std::string& to = words[words.size() - 2];
  const std::string& from = words.back();
  if (has(words, "ftz")) return nullptr;
  if (has(words, "sat")) return to == "f32" && from == "f32" ? &lanewise<kSaturate, float, float> : nullptr;
  if (to == "bf16x2") return &lanewise<kToBf16Pair, std::uint32_t, float, float>;
  if (to == "bf16") return &lanewise<kToBf16, std::uint16_t, float>;
  if (from == "bf16") return &lanewise<kFromBf16, float, std::uint16_t>;
  if (to == "f16") return &lanewise<kToHalf, std::uint16_t, float>;
  if (from == "f16") return &lanewise<kFromHalf, float, std::uint16_t>;
  return with_byte_too(to, [&](auto of_to) {
    return with_byte_too(from, [&](auto of_from) {
      return conversion_between<typename decltype(of_to)::Type, typename decltype(of_from)::Type>(words);
    });
  });
}

// Registers of one size to one of another: the parts of a word.
void move_parts(const Step& step, Warp& warp, std::uint32_t lanes) {
  const auto parts = static_cast<int>(std::max(step.to.size(), step.from.size()));
  const int bits = step.bytes * 8 / parts;
  for_lanes(lanes, [&](std::size_t lane) {
    std::uint64_t word = 0;
    int at = 0;
    for (const int row : step.from) word |= warp.row(row)[lane] << (bits * at++ % 64);
    at = 0;
    for (const int row : step.to) {
      warp.row(row)[lane] = cut(word >> (bits * at++ % 64), step.to.size() > 1 ? bits : 8 * step.bytes);
    }
  });
}

Action float_only(const Words& words) {
  const std::string& name = words[0];
  const std::string& type = words.back();
  if (name == "fma") {
    if (has(words, "rm")) return type == "f32" ? &lanewise<kFusedDown, float, float, float, float> : nullptr;
    return float_action<kFused, 3>(type);
  }
  if (name == "sqrt") return float_action<kRoot, 1>(type);
  if (name == "rcp") return float_action<kReciprocal, 1>(type);
  if (name == "rsqrt") return float_action<kReciprocalRoot, 1>(type);
  if (name == "lg2") return &lanewise<kLogarithm, float, float>;
  if (name == "ex2" && has(words, "ftz")) return &lanewise<kFlushedPowerOfTwo, float, float>;
  if (name == "ex2") return &lanewise<kPowerOfTwo, float, float>;
  return nullptr;
}

Action of_bits(const Words& words) {
  const std::string& name = words[0];
  const std::string& type = words.back();
  if (type == "pred") {
    if (name == "and") return &lanewise<kAnd, bool, bool, bool>;
    if (name == "or") return &lanewise<kOr, bool, bool, bool>;
    if (name == "xor") return &lanewise<kXor, bool, bool, bool>;
    if (name == "not") return &lanewise<[](bool a) { return !a; }, bool, bool>;
    if (name == "mov") return &lanewise<kSame, bool, bool>;
    return nullptr;
  }
  if (name == "and") return integer_action<kAnd, 2>(type);
  if (name == "or") return integer_action<kOr, 2>(type);
  if (name == "xor") return integer_action<kXor, 2>(type);
  if (name == "not") return integer_action<kNot, 1>(type);
  if (name == "shl" || name == "shr") return shift(words);
  if (name == "popc")
    return type == "b64" ? &lanewise<kCountBits, std::uint32_t, std::uint64_t>
                         : &lanewise<kCountBits, std::uint32_t, std::uint32_t>;
  if (name == "clz")
    return type == "b64" ? &lanewise<kLeadingZeros, std::uint32_t, std::uint64_t>
                         : &lanewise<kLeadingZeros, std::uint32_t, std::uint32_t>;
  if (name == "prmt") return &lanewise<kPermute, std::uint32_t, std::uint32_t, std::uint32_t, std::uint32_t>;
  if (name == "bfi" || name == "bfe") {
    return with_integer(type, [&](auto of) -> Action {
      using T = typename decltype(of)::Type;
      if constexpr (std::is_unsigned_v<T>) {
        if (name == "bfi") return &lanewise<kInsert, T, T, T, std::uint32_t, std::uint32_t>;
        return &lanewise<kExtract, T, T, std::uint32_t, std::uint32_t>;
      }
      return nullptr;
    });
  }
  return nullptr;
}

Action of_numbers(const Words& words) {
  const std::string& name = words[0];
  const std::string& type = words.back();
  if (name == "add") return number_action<kAdd, 2>(type);
  if (name == "sub") return number_action<kSubtract, 2>(type);
  if (name == "mul") return product(words, false);
  if (name == "mad") return product(words, true);
  if (name == "div") return number_action<kDivide, 2>(type);
  if (name == "rem") return integer_action<kRemainder, 2>(type);
  if (name == "min") return number_action<kMinimum, 2>(type);
  if (name == "max") return number_action<kMaximum, 2>(type);
  if (name == "neg") return number_action<kNegate, 1>(type);
  if (name == "abs" && type[0] == 'f') return float_action<kFloatAbsolute, 1>(type);
  if (name == "abs") return integer_action<kAbsolute, 1>(type);
  if (name == "selp") {
    return with_number(type, [](auto of) -> Action {
      using T = typename decltype(of)::Type;
      return &lanewise<kSelect, T, T, T, bool>;
    });
  }
  if (name == "setp") return set_predicate(words);
  if (name == "cvt") return conversion(words);
  if (name == "cvta")
    return words[1] == "to" && words[2] == "global" ? &lanewise<kSame, std::uint64_t, std::uint64_t> : nullptr;
  return nullptr;
}

}  // namespace

Action action_of(const Words& words, Step& step) {
  const std::string& name = words[0];
  if (name == "bra") step.kind = Kind::kBranch;
  if (name == "ret" || name == "exit") step.kind = Kind::kExit;
  if (step.kind != Kind::kPlain) return nullptr;
  if (name == "mov" && words.back() != "pred") {
    step.bytes = std::atoi(words.back().c_str() + 1) / 8;
    return &move_parts;
  }
  for (const auto find : {&of_numbers, &of_bits, &float_only}) {
    if (const Action action = find(words); action != nullptr) return action;
  }
  return memory_action_of(words, step);
}

}  // namespace kvloom::ptx
