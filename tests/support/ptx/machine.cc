#include "tests/support/ptx/machine.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>
#include <random>
#include <utility>

#include "tests/support/random.h"

namespace kvloom::ptx {
namespace {

template <typename Body>
void for_lanes(std::uint32_t lanes, Body&& body) {
  for (; lanes != 0; lanes &= lanes - 1) body(std::countr_zero(lanes));
}

}  // namespace

bool SharedMemory::is_before(const Trace& trace, const Now& now) {
  if (trace.thread < 0 || (trace.thread == now.thread && !trace.others)) return true;
  if (trace.block_epoch < now.block_epoch) return true;
  return !trace.other_warps && trace.thread / kLanes == now.thread / kLanes && trace.warp_epoch < now.warp_epoch;
}

std::string SharedMemory::note_read(std::size_t address, std::size_t bytes, const Now& now) {
  for (std::size_t i = address / 2; i < (address + bytes + 1) / 2; ++i) {
    if (written_[i].thread < 0) return "reads shared memory that nobody has written";
    if (!is_before(written_[i], now)) return fmt::format("reads what thread {} writes", written_[i].thread);
    Trace& last = read_[i];
    const bool goes_on = last.thread >= 0 && last.block_epoch == now.block_epoch;
    const bool others = goes_on && (last.others || last.thread != now.thread);
    const bool other_warps = goes_on && (last.other_warps || last.thread / kLanes != now.thread / kLanes);
    last = {static_cast<std::int16_t>(now.thread), others, other_warps, now.block_epoch, now.warp_epoch};
  }
  return {};
}

std::string SharedMemory::note_write(std::size_t address, std::size_t bytes, const Now& now) {
  for (std::size_t i = address / 2; i < (address + bytes + 1) / 2; ++i) {
    if (!is_before(written_[i], now)) return fmt::format("writes what thread {} writes", written_[i].thread);
    if (!is_before(read_[i], now)) return fmt::format("writes what thread {} reads", read_[i].thread);
    written_[i] = {static_cast<std::int16_t>(now.thread), false, false, now.block_epoch, now.warp_epoch};
  }
  return {};
}

void SharedMemory::clear() {
  std::ranges::fill(bytes_, std::byte{0xff});
  std::ranges::fill(written_, Trace{});
  std::ranges::fill(read_, Trace{});
}

Warp::Warp(Block& block, int first_thread)
    : block_(block),
      first_thread_(first_thread),
      rows_(static_cast<std::size_t>(block.kernel.rows)),
      lanes_(kLanes),
      local_(kLanes * block.kernel.local_bytes) {}

void Warp::begin() {
  const Launch& launch = block_.launch;
  const int threads = launch.threads - first_thread_;
  alive_ = threads >= kLanes ? ~0u : (1u << threads) - 1u;
  std::ranges::fill(lanes_, Lane{});
  // Registers and memory that nobody has written hold anything.
  for (Row& row : rows_) row.fill(0xfff7fff7fff7fff7u);
  std::ranges::fill(local_, std::byte{0xff});
  for (const auto& [row, value] : block_.kernel.constants) rows_[static_cast<std::size_t>(row)].fill(value);
  for (const auto& [row, special] : block_.kernel.specials) {
    Row& values = rows_[static_cast<std::size_t>(row)];
    if (special == Special::kThread) std::iota(values.begin(), values.end(), static_cast<std::uint64_t>(first_thread_));
    if (special == Special::kThreads) values.fill(static_cast<std::uint64_t>(launch.threads));
    if (special == Special::kBlock) values.fill(static_cast<std::uint64_t>(block_.index));
    if (special == Special::kBlocks) values.fill(static_cast<std::uint64_t>(launch.blocks));
  }
}

void Warp::stop(const Step& step, int lane, const std::string& message) const {
  ptx::stop(fmt::format("{}: block {} thread {}: {}\n  {}:{}: {}", block_.kernel.name, block_.index,
                        first_thread_ + lane, message, block_.kernel.file, step.line + 1,
                        block_.kernel.lines[static_cast<std::size_t>(step.line)]));
}

std::byte* Warp::place(const Step& step, Space space, int lane, std::uint64_t address, std::size_t bytes) {
  if (address % bytes != 0) stop(step, lane, fmt::format("{:#x} is no multiple of {}", address, bytes));
  const auto within = [&](std::size_t size, std::byte* base) {
    if (bytes > size || address > size - bytes)
      stop(step, lane, fmt::format("{} + {} bytes of {}", address, bytes, size));
    return base + address;
  };
  switch (space) {
    case Space::kShared:
      return within(block_.shared.size(), block_.shared.at(0));
    case Space::kParameter:
      return within(block_.launch.parameters.size(), const_cast<std::byte*>(block_.launch.parameters.data()));
    case Space::kLocal:
      return within(block_.kernel.local_bytes,
                    local_.data() + static_cast<std::size_t>(lane) * block_.kernel.local_bytes);
    default:
      return reinterpret_cast<std::byte*>(address);
  }
}

const std::byte* Warp::readable(const Step& step, Space space, int lane, std::uint64_t address, std::size_t bytes) {
  const std::byte* at = place(step, space, lane, address, bytes);
  if (space == Space::kShared) {
    if (const std::string wrong = block_.shared.note_read(address, bytes, now(lane)); !wrong.empty()) {
      stop(step, lane, wrong);
    }
  }
  return at;
}

std::byte* Warp::writable(const Step& step, Space space, int lane, std::uint64_t address, std::size_t bytes) {
  std::byte* at = place(step, space, lane, address, bytes);
  if (space == Space::kShared) {
    if (const std::string wrong = block_.shared.note_write(address, bytes, now(lane)); !wrong.empty()) {
      stop(step, lane, wrong);
    }
  }
  return at;
}

void Warp::carry_out(const Copy& copy, int lane) {
  std::byte* to = writable(*copy.step, Space::kShared, lane, copy.to, copy.bytes);
  if (copy.valid_bytes > 0) std::memcpy(to, copy.from, copy.valid_bytes);
  std::memset(to + copy.valid_bytes, 0, copy.bytes - copy.valid_bytes);
}

void Warp::copy_later(const Step& step, int lane, std::uint64_t to, std::uint64_t from, std::size_t bytes,
                      std::size_t valid_bytes) {
  const std::byte* source = valid_bytes == 0 ? nullptr : readable(step, Space::kGlobal, lane, from, bytes);
  const Copy copy{&step, to, source, bytes, valid_bytes};
  // Until it is waited for the copy may be done at any time, so that nobody may read or write there meanwhile.
  carry_out(copy, lane);
  if (block_.copies_at_once) return;
  std::memset(block_.shared.at(to), 0xff, bytes);
  lanes_[static_cast<std::size_t>(lane)].groups.back().push_back(copy);
}

void Warp::end_copy_group(std::uint32_t lanes) {
  for_lanes(lanes, [&](int lane) { lanes_[static_cast<std::size_t>(lane)].groups.emplace_back(); });
}

void Warp::await_copies(std::uint32_t lanes, int groups_under_way) {
  for_lanes(lanes, [&](int lane) {
    auto& groups = lanes_[static_cast<std::size_t>(lane)].groups;
    while (std::ssize(groups) - 1 > groups_under_way) {
      for (const Copy& copy : groups.front()) carry_out(copy, lane);
      groups.erase(groups.begin());
    }
  });
}

void Warp::wait(std::uint32_t lanes, const Step& step, bool vote) {
  waiting_ |= lanes;
  vote_ = vote_ || vote;
  if (!step.to.empty()) voters_.emplace_back(step.to[0], lanes);
}

void Warp::release(bool vote) {
  for (const auto& [row, lanes] : voters_) {
    for_lanes(lanes, [&](int lane) { rows_[static_cast<std::size_t>(row)][static_cast<std::size_t>(lane)] = vote; });
  }
  voters_.clear();
  waiting_ = 0;
  vote_ = false;
  pass_barrier();
}

std::uint32_t Warp::guarded(const Step& step, std::uint32_t lanes) {
  if (step.guard < 0) return lanes;
  std::uint32_t chosen = 0;
  const Row& predicate = row(step.guard);
  for_lanes(lanes, [&](int lane) {
    if ((predicate[static_cast<std::size_t>(lane)] != 0) != step.guard_negated) chosen |= 1u << lane;
  });
  return chosen;
}

// Those that stand furthest behind, so that lanes that went different ways meet again.
std::uint32_t Warp::next_lanes() const {
  std::uint32_t lanes = 0;
  int least = -1;
  for_lanes(alive_ & ~waiting_ & ~together_, [&](int lane) {
    const int at = lanes_[static_cast<std::size_t>(lane)].at;
    if (least >= 0 && at > least) return;
    if (at != least) lanes = 0;
    least = at;
    lanes |= 1u << lane;
  });
  return lanes;
}

void Warp::take_step(std::uint32_t lanes) {
  const int at = lanes_[static_cast<std::size_t>(std::countr_zero(lanes))].at;
  const Step& step = block_.kernel.steps[static_cast<std::size_t>(at)];
  const std::uint32_t chosen = guarded(step, lanes);
  const auto go = [&](std::uint32_t who, int to) {
    for_lanes(who, [&](int lane) { lanes_[static_cast<std::size_t>(lane)].at = to; });
  };
  go(lanes, at + 1);
  if (chosen == 0) return;
  switch (step.kind) {
    case Kind::kPlain:
      step.action(step, *this, chosen);
      break;
    case Kind::kBranch:
      go(chosen, step.target);
      break;
    case Kind::kExit:
      alive_ &= ~chosen;
      break;
    case Kind::kBarrier:
      step.action(step, *this, chosen);
      break;
    case Kind::kBeyond:
      stop(step, std::countr_zero(chosen), "goes on after the kernel's end");
    case Kind::kTogether:
      if (chosen == alive_) {
        step.action(step, *this, chosen);
      } else {
        go(chosen, at);
        together_ |= chosen;
      }
      break;
  }
}

void Warp::run() {
  while ((alive_ & ~waiting_) != 0) {
    std::uint32_t lanes = next_lanes();
    if (lanes == 0) {
      // All that can go on stand before what a warp does as a whole.
      const int first = std::countr_zero(together_);
      const int at = lanes_[static_cast<std::size_t>(first)].at;
      bool is_whole = together_ == alive_;
      for_lanes(together_, [&](int lane) { is_whole = is_whole && lanes_[static_cast<std::size_t>(lane)].at == at; });
      if (!is_whole) {
        stop(block_.kernel.steps[static_cast<std::size_t>(at)], first, "not all lanes of the warp come here");
      }
      lanes = std::exchange(together_, 0);
    }
    take_step(lanes);
  }
}

void run_kernel(const Kernel& kernel, const Launch& launch) {
  const std::size_t shared_bytes = (kernel.shared_bytes + launch.dynamic_shared_bytes + 15) / 16 * 16;
  Block block{kernel, launch, 0, SharedMemory(shared_bytes), 0, true};
  std::vector<Warp> warps;
  for (int first = 0; first < launch.threads; first += kLanes) warps.emplace_back(block, first);
  std::minstd_rand chance(static_cast<unsigned>(test::newest_seed().seed + 1));
  for (; block.index < launch.blocks; ++block.index) {
    block.shared.clear();
    block.epoch = 1;
    block.copies_at_once = chance() % 2 == 0;
    for (Warp& warp : warps) warp.begin();
    while (true) {
      for (Warp& warp : warps) warp.run();
      if (std::ranges::all_of(warps, &Warp::has_ended)) break;
      const bool vote = std::ranges::any_of(warps, &Warp::votes_yes);
      for (Warp& warp : warps) warp.release(vote);
      ++block.epoch;
    }
  }
}

}  // namespace kvloom::ptx
