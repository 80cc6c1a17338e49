// Which tokens go into which batch: a pure function of the seed and global indices, never of ranks.
#pragma once

#include <cstdint>
#include <span>

#include "data/token_file.h"

namespace kvloom {

// A bijection of [0, size), different for every key: a Feistel network with cycle walking, so that nothing is stored.
class Permutation {
 public:
  Permutation(std::uint64_t size, std::uint64_t key);
  std::uint64_t operator()(std::uint64_t index) const;

 private:
  std::uint64_t size_;
  std::uint64_t key_;
  int half_bits_;
};

// Training windows: context tokens and the same shifted by one, cut at multiples of context. Sequence n of a run is
// window permutation_{epoch}(n mod windows), with a new permutation every epoch. Windows may cross documents.
class TokenWindows {
 public:
  // The file outlives this. Throws InputError when it has fewer than context + 1 training tokens.
  TokenWindows(const TokenFile& file, std::int64_t context, std::uint64_t seed);

  std::int64_t size() const { return windows_; }  // in an epoch

  // tokens, targets [count * context] = sequences [first, first + count). Safe to call from several threads.
  void fill(std::int64_t first, std::int64_t count, std::span<std::int32_t> tokens,
            std::span<std::int32_t> targets) const;

 private:
  const TokenFile& file_;
  std::int64_t context_;
  std::uint64_t seed_;
  std::int64_t windows_;
};

// One of EvaluationWindows: [context] each.
struct EvaluationWindow {
  std::int64_t index;
  std::span<const std::int32_t> tokens;
  std::span<const std::int32_t> targets;  // kIgnoredTarget: counts for nothing
};

// Windows of a part in order, each token a target once; the last one is filled up with kIgnoredTarget.
class EvaluationWindows {
 public:
  // Throws InputError when the part has fewer than two tokens.
  EvaluationWindows(const TokenFile& file, Part part, std::int64_t context);

  std::int64_t size() const;
  // tokens, targets [context] = window `index`.
  void fill(std::int64_t index, std::span<std::int32_t> tokens, std::span<std::int32_t> targets) const;

 private:
  const TokenFile& file_;
  Part part_;
  std::int64_t context_;
};

}  // namespace kvloom
