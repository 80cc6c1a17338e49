// Python's random.Random(seed) as far as resampling needs it, so that resampled figures are those of Python programs.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace kvloom {

// The Mersenne Twister MT19937 (Matsumoto and Nishimura, 1998), seeded by their init_by_array from the seed's words, as
// CPython seeds it from an integer of up to 32 bits.
class PythonRandom {
 public:
  explicit PythonRandom(std::uint32_t seed);

  // random(): of [0, 1), with 53 bits.
  double uniform();
  // One draw of choices(): of 0 to count - 1.
  std::size_t index(std::size_t count) { return static_cast<std::size_t>(uniform() * static_cast<double>(count)); }

 private:
  static constexpr std::size_t kWords = 624;

  std::uint32_t next();
  void refill();

  std::array<std::uint32_t, kWords> state_;
  std::size_t at_ = kWords;
};

}  // namespace kvloom
