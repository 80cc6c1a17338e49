#include "infer/evaluation/python_random.h"

namespace kvloom {

PythonRandom::PythonRandom(std::uint32_t seed) {
  const auto last = [this](std::size_t i) { return state_[i - 1] ^ (state_[i - 1] >> 30); };
  state_[0] = 19650218u;
  for (std::uint32_t i = 1; i < kWords; ++i) state_[i] = 1812433253u * last(i) + i;
  // init_by_array with the seed as its only word.
  std::size_t i = 1;
  const auto advance = [&] {
    if (++i < kWords) return;
    state_[0] = state_[kWords - 1];
    i = 1;
  };
  for (std::size_t round = 0; round < kWords; ++round, advance()) state_[i] = (state_[i] ^ (last(i) * 1664525u)) + seed;
  for (std::size_t round = 1; round < kWords; ++round, advance()) {
    state_[i] = (state_[i] ^ (last(i) * 1566083941u)) - static_cast<std::uint32_t>(i);
  }
  state_[0] = 0x80000000u;
}

void PythonRandom::refill() {
  for (std::size_t i = 0; i < kWords; ++i) {
    const std::uint32_t word = (state_[i] & 0x80000000u) | (state_[(i + 1) % kWords] & 0x7fffffffu);
    state_[i] = state_[(i + 397) % kWords] ^ (word >> 1) ^ ((word & 1u) != 0 ? 0x9908b0dfu : 0u);
  }
  at_ = 0;
}

std::uint32_t PythonRandom::next() {
  if (at_ == kWords) refill();
  std::uint32_t word = state_[at_++];
  word ^= word >> 11;
  word ^= (word << 7) & 0x9d2c5680u;
  word ^= (word << 15) & 0xefc60000u;
  return word ^ (word >> 18);
}

double PythonRandom::uniform() {
  const std::uint32_t high = next() >> 5;
  const std::uint32_t low = next() >> 6;
  return (static_cast<double>(high) * 67108864.0 + static_cast<double>(low)) / 9007199254740992.0;
}

}  // namespace kvloom
