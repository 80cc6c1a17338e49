// What lanes do each for itself, in registers.
#include "tests/support/ptx/actions.h"

#include <cfenv>
#include <cmath>
#include <limits>

namespace kvloom::ptx {
namespace {

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
constexpr auto kFlushedReciprocal = [](float a) {
  const float result = 1 / a;
  return std::fabs(result) < std::numeric_limits<float>::min() ? std::copysign(0.0f, result) : result;
};
constexpr auto kReciprocalRoot = []<typename T>(T a) { return 1 / std::sqrt(a); };
constexpr auto kPowerOfTwo = [](float a) { return std::exp2(a); };
constexpr auto kFlushedPowerOfTwo = [](float a) {
  const float result = std::exp2(std::fabs(a) < std::numeric_limits<float>::min() ? 0.0f : a);
  return result < std::numeric_limits<float>::min() ? 0.0f : result;
};
constexpr auto kSelect = []<typename T>(T a, T b, bool first) { return first ? a : b; };
constexpr auto kLogarithm = [](float a) { return std::log2(a); };

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
  if (name == "rcp" && has(words, "ftz")) return &lanewise<kFlushedReciprocal, float, float>;
  if (name == "rcp") return float_action<kReciprocal, 1>(type);
  if (name == "rsqrt") return float_action<kReciprocalRoot, 1>(type);
  if (name == "lg2") return &lanewise<kLogarithm, float, float>;
  if (name == "ex2" && has(words, "ftz")) return &lanewise<kFlushedPowerOfTwo, float, float>;
  if (name == "ex2") return &lanewise<kPowerOfTwo, float, float>;
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
  if (name == "setp") return comparison_of(words);
  if (name == "cvt") return conversion_of(words);
  if (name == "cvta")
    return words[1] == "to" && words[2] == "global" ? &lanewise<kSame, std::uint64_t, std::uint64_t> : nullptr;
  return nullptr;
}

// In ways that the host's arithmetic does not.
bool rounds_otherwise(const Words& words) {
  const std::string& name = words[0];
  if (has(words, "ftz") && name != "ex2" && name != "rcp") return true;
  if (has(words, "sat") && name != "cvt") return true;
  return has(words, "rz") || has(words, "rp") || (has(words, "rm") && name != "fma");
}

}  // namespace

Action action_of(const Words& words, Step& step) {
  const std::string& name = words[0];
  if (name == "bra") step.kind = Kind::kBranch;
  if (name == "ret" || name == "exit") step.kind = Kind::kExit;
  if (step.kind != Kind::kPlain || rounds_otherwise(words)) return nullptr;
  if (name == "mov" && words.back() != "pred") {
    step.bytes = std::atoi(words.back().c_str() + 1) / 8;
    return &move_parts;
  }
  for (const auto find : {&of_numbers, &bit_action_of, &float_only}) {
    if (const Action action = find(words); action != nullptr) return action;
  }
  return memory_action_of(words, step);
}

}  // namespace kvloom::ptx
