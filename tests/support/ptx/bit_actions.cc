// What lanes do with bits, and with predicates, which are single ones.
#include "tests/support/ptx/actions.h"

namespace kvloom::ptx {
namespace {

constexpr auto kAnd = []<typename T>(T a, T b) { return static_cast<T>(a & b); };
constexpr auto kOr = []<typename T>(T a, T b) { return static_cast<T>(a | b); };
constexpr auto kXor = []<typename T>(T a, T b) { return static_cast<T>(a ^ b); };
constexpr auto kNot = []<typename T>(T a) { return static_cast<T>(~a); };
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

Action shift(const Words& words) {
  const bool is_left = words[0] == "shl";
  return with_integer(words.back(), [&](auto of) -> Action {
    using T = typename decltype(of)::Type;
    if (is_left) return &lanewise<kShiftLeft, T, T, std::uint32_t>;
    return &lanewise<kShiftRight, T, T, std::uint32_t>;
  });
}

}  // namespace

Action bit_action_of(const Words& words) {
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

}  // namespace kvloom::ptx
