// Flat buffers cut into pieces that threads share.
#pragma once

#include <algorithm>
#include <cstdint>

namespace kvloom::cpu {

inline constexpr std::int64_t kPiece = 4096;

inline std::int64_t pieces_of(std::int64_t count) { return (count + kPiece - 1) / kPiece; }

// Calls work(begin, end) for every piece of [0, count). Pieces are the same for any number of threads.
template <typename Work>
void for_pieces(std::int64_t count, const Work& work) {
  const std::int64_t pieces = pieces_of(count);
#pragma omp parallel for schedule(static) if (pieces > 4)
  for (std::int64_t n = 0; n < pieces; ++n) work(n * kPiece, std::min(count, (n + 1) * kPiece));
}

}  // namespace kvloom::cpu
