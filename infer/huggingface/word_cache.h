// Ids of words met lately. A word has one slot, a cache line, which a later word may take.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

namespace kvloom::huggingface {

class WordCache {
 public:
  static constexpr std::size_t kLongestWord = 30;
  static constexpr std::size_t kMostIds = 8;

  struct alignas(64) Slot {
    std::array<char, kLongestWord> word{};
    std::uint8_t bytes = 0;
    std::uint8_t count = 0;
    std::array<std::int32_t, kMostIds> ids{};
  };

  // The word's slot, which holds that word or another one. Nothing until much has been encoded: short texts need no
  // cache. At most kLongestWord bytes.
  Slot* slot_of(std::string_view word) {
    if (slots_.empty()) {
      met_ += word.size();
      if (met_ < kBytesBeforeCache) return nullptr;
      slots_.resize(kSlots);
    }
    return &slots_[hash(word) % kSlots];
  }

  static bool holds(const Slot& slot, std::string_view word) {
    return slot.bytes == word.size() && std::memcmp(slot.word.data(), word.data(), word.size()) == 0;
  }

  static void fill(Slot& slot, std::string_view word, std::span<const std::int32_t> ids) {
    if (ids.size() > kMostIds) return;
    std::ranges::copy(word, slot.word.begin());
    std::ranges::copy(ids, slot.ids.begin());
    slot.bytes = static_cast<std::uint8_t>(word.size());
    slot.count = static_cast<std::uint8_t>(ids.size());
  }

 private:
  static constexpr std::size_t kSlots = std::size_t{1} << 15;
  static constexpr std::size_t kBytesBeforeCache = 16384;

  static std::uint64_t load(const char* from, std::size_t bytes) {
    std::uint64_t word = 0;
    std::memcpy(&word, from, bytes);
    return word;
  }
  static std::uint64_t hash(std::string_view word) {
    constexpr std::uint64_t kMix = 0x9e3779b97f4a7c15u;
    std::uint64_t hash = word.size();
    const char* at = word.data();
    std::size_t rest = word.size();
    for (; rest > 8; rest -= 8, at += 8) hash = (hash ^ load(at, 8)) * kMix, hash ^= hash >> 29;
    hash = (hash ^ load(at, rest)) * kMix;
    return hash ^ hash >> 32;
  }

  std::vector<Slot> slots_;
  std::size_t met_ = 0;  // bytes of words before there was a cache
};

}  // namespace kvloom::huggingface
