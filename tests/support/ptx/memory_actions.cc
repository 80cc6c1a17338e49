// Memory, and what the lanes of a warp or the threads of a block do together.
#include "tests/support/ptx/actions.h"

namespace kvloom::ptx {
namespace {

std::uint64_t address_of(const Step& step, Warp& warp, std::size_t place, std::size_t lane) {
  const Place& at = step.places[place];
  return warp.row(at.row)[lane] + static_cast<std::uint64_t>(at.offset);
}

void load(const Step& step, Warp& warp, std::uint32_t lanes) {
  const auto bytes = static_cast<std::size_t>(step.bytes);
  for_lanes(lanes, [&](std::size_t lane) {
    const std::byte* from = warp.readable(step, step.space, static_cast<int>(lane), address_of(step, warp, 0, lane),
                                          bytes * step.to.size());
    for (const int row : step.to) {
      std::uint64_t word = 0;
      std::memcpy(&word, from, bytes);
      const int above = 64 - 8 * step.bytes;
      if (step.is_signed) word = static_cast<std::uint64_t>(static_cast<std::int64_t>(word << above) >> above);
      warp.row(row)[lane] = cut(word, step.to_bits);
      from += bytes;
    }
  });
}

void store(const Step& step, Warp& warp, std::uint32_t lanes) {
  const auto bytes = static_cast<std::size_t>(step.bytes);
  for_lanes(lanes, [&](std::size_t lane) {
    std::byte* to = warp.writable(step, step.space, static_cast<int>(lane), address_of(step, warp, 0, lane),
                                  bytes * step.from.size());
    for (const int row : step.from) {
      std::memcpy(to, &warp.row(row)[lane], bytes);
      to += bytes;
    }
  });
}

// cp.async [shared], [global], bytes{, bytes that are not zeros}
void copy(const Step& step, Warp& warp, std::uint32_t lanes) {
  for_lanes(lanes, [&](std::size_t lane) {
    const std::uint64_t bytes = warp.row(step.from[0])[lane];
    const std::uint64_t valid = step.from.size() > 1 ? warp.row(step.from[1])[lane] : bytes;
    warp.copy_later(step, static_cast<int>(lane), address_of(step, warp, 0, lane), address_of(step, warp, 1, lane),
                    bytes, valid);
  });
}
void commit_copies(const Step&, Warp& warp, std::uint32_t lanes) { warp.end_copy_group(lanes); }
void await_copies(const Step& step, Warp& warp, std::uint32_t lanes) { warp.await_copies(lanes, step.count); }

void exchange(const Step& step, Warp& warp, std::uint32_t lanes) {  // shfl.sync.bfly to|inside, from, mask, clamp
  const Row from = warp.row(step.from[0]);
  for_lanes(lanes, [&](std::size_t lane) {
    const std::size_t other = lane ^ warp.row(step.from[1])[lane];
    if ((lanes >> other & 1u) == 0) warp.stop(step, static_cast<int>(lane), "there is no such lane");
    warp.row(step.to[0])[lane] = from[other];
    if (step.to.size() > 1) warp.row(step.to[1])[lane] = 1;
  });
}

void ballot(const Step& step, Warp& warp, std::uint32_t lanes) {
  std::uint32_t votes = 0;
  for_lanes(lanes, [&](std::size_t lane) {
    if (warp.row(step.from[0])[lane] != 0) votes |= 1u << lane;
  });
  for_lanes(lanes, [&](std::size_t lane) { warp.row(step.to[0])[lane] = votes; });
}

void warp_barrier(const Step&, Warp& warp, std::uint32_t) { warp.pass_barrier(); }

void block_barrier(const Step& step, Warp& warp, std::uint32_t lanes) {
  bool vote = false;
  if (!step.to.empty()) {
    for_lanes(lanes, [&](std::size_t lane) { vote = vote || warp.row(step.from[1])[lane] != 0; });
  }
  warp.wait(lanes, step, vote);
}

// Row lane % 8 of matrix lane / 8 is at the lane's address.
template <bool kTransposed>
void load_matrices(const Step& step, Warp& warp, std::uint32_t) {
  std::uint16_t matrices[4][8][8];
  for (std::size_t lane = 0; lane < kLanes; ++lane) {
    std::memcpy(matrices[lane / 8][lane % 8],
                warp.readable(step, Space::kShared, static_cast<int>(lane), address_of(step, warp, 0, lane), 16), 16);
  }
  for (std::size_t lane = 0; lane < kLanes; ++lane) {
    for (std::size_t m = 0; m < step.to.size(); ++m) {
      const std::size_t row = lane / 4;
      const std::size_t column = 2 * (lane % 4);
      const std::uint32_t low = kTransposed ? matrices[m][column][row] : matrices[m][row][column];
      const std::uint32_t high = kTransposed ? matrices[m][column + 1][row] : matrices[m][row][column + 1];
      warp.row(step.to[m])[lane] = high << 16 | low;
    }
  }
}

float bf16_at(std::uint64_t word, std::size_t half) { return value_of<float>((word >> (16 * half) & 0xffffu) << 16); }

// d = a b + c of m16n8k16, by the fragment layouts that the PTX ISA gives for .bf16.
void multiply_matrices(const Step& step, Warp& warp, std::uint32_t) {
  float a[16][16];
  float b[16][8];
  for (std::size_t lane = 0; lane < kLanes; ++lane) {
    const std::size_t group = lane / 4;
    const std::size_t pair = 2 * (lane % 4);
    for (std::size_t half = 0; half < 2; ++half) {
      for (std::size_t i = 0; i < 4; ++i) {
        a[group + 8 * (i % 2)][pair + half + 8 * (i / 2)] = bf16_at(warp.row(step.from[i])[lane], half);
      }
      for (std::size_t i = 0; i < 2; ++i) {
        b[pair + half + 8 * i][group] = bf16_at(warp.row(step.from[4 + i])[lane], half);
      }
    }
  }
  for (std::size_t lane = 0; lane < kLanes; ++lane) {
    for (std::size_t i = 0; i < 4; ++i) {
      const std::size_t row = lane / 4 + 8 * (i / 2);
      const std::size_t column = 2 * (lane % 4) + i % 2;
      float sum = value_of<float>(warp.row(step.from[6 + i])[lane]);
      for (std::size_t k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
      warp.row(step.to[i])[lane] = bits_of(sum);
    }
  }
}

bool names_a_space(const Words& words, Step& step) {
  for (const std::string& word : words) {
    if (word.starts_with("shared")) step.space = Space::kShared;
    if (word == "param") step.space = Space::kParameter;
    if (word == "local") step.space = Space::kLocal;
    if (word == "global" || word.starts_with("shared") || word == "param" || word == "local") return true;
  }
  return false;
}

Action access(const Words& words, Step& step) {
  if (!names_a_space(words, step)) return nullptr;
  step.bytes = std::atoi(words.back().c_str() + 1) / 8;
  step.is_signed = words.back()[0] == 's';
  return words[0] == "ld" ? &load : &store;
}

Action copy_action(const Words& words, Step& step) {
  if (words[2] == "commit_group") return &commit_copies;
  if (words[2] == "wait_all") step.count = 0;
  if (words[2] == "wait_group" || words[2] == "wait_all") return &await_copies;
  return &copy;
}

}  // namespace

Action memory_action_of(const Words& words, Step& step) {
  const std::string& name = words[0];
  if (name == "ld" || name == "st") return access(words, step);
  if (name == "cp" && words[1] == "async" && words.size() > 2) return copy_action(words, step);
  if (name == "bar" || name == "barrier") {
    if (has(words, "warp")) {
      step.kind = Kind::kTogether;
      return &warp_barrier;
    }
    step.kind = Kind::kBarrier;
    return has(words, "red") && !has(words, "or") ? nullptr : &block_barrier;
  }
  step.kind = Kind::kTogether;
  if (name == "shfl" && has(words, "bfly")) return &exchange;
  if (name == "vote" && has(words, "ballot")) return &ballot;
  if (name == "ldmatrix" && has(words, "x4")) return has(words, "trans") ? &load_matrices<true> : &load_matrices<false>;
  if (name == "mma" && has(words, "m16n8k16") && has(words, "bf16")) return &multiply_matrices;
  step.kind = Kind::kPlain;
  return nullptr;
}

}  // namespace kvloom::ptx
