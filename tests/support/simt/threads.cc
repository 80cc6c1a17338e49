#include "tests/support/simt/threads.h"

#include <sanitizer/asan_interface.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "tests/support/random.h"
#include "tests/support/simt/device_memory.h"

// Puts the callee-saved registers on the running stack, leaves its top in *from and goes on from `to`.
extern "C" void kvloom_simt_switch(void** from, void* to);
asm(R"(
.text
.globl kvloom_simt_switch
.type kvloom_simt_switch,@function
kvloom_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size kvloom_simt_switch,.-kvloom_simt_switch
)");

namespace kvloom::simt {
namespace {

constexpr std::size_t kStackBytes = 256 << 10;
constexpr std::size_t kLeftBytes = 4 << 10;
constexpr int kMostThreads = 1024;
constexpr std::size_t kMostDeclared = 6 << 10;  // of shared memory by any of the kernels

enum class State : std::uint8_t { kReady, kAtBarrier, kAtExchange, kDone };

struct Coroutine {
  void* stack_top = nullptr;
  State state = State::kDone;
};

struct Copy {
  void* to;
  const void* from;
  std::size_t bytes;
};

// Of a thread: those under way, and how many of them each group that has been ended reaches to.
struct Copies {
  std::vector<Copy> under_way;
  std::vector<std::size_t> group_ends;
};

struct Warp {
  alignas(16) std::byte lanes[2][kWarp][kLaneBytes];
  int turn = 0;
};

struct Block {
  std::byte* stacks = nullptr;
  std::vector<Coroutine> threads;
  std::vector<Copies> copies;
  std::vector<Warp> warps;
  std::vector<std::size_t> warp_order;
  bool one_ahead = false;
  bool copies_are_late = false;
  std::vector<std::byte> shared;
  const std::function<void()>* body = nullptr;
  const char* name = "";
  void* scheduler = nullptr;
  int current = 0;
  std::int64_t index = 0;
  std::int64_t count = 0;
  bool vote = false;    // of the barrier that is filling
  bool result = false;  // of the last one
  std::mt19937_64 order;
  std::uint64_t seeds = 0;  // of tests, that `order` has begun from
};

Block& block() {
  static Block instance;
  return instance;
}

[[noreturn]] void give_up(const char* why) {
  std::fprintf(stderr, "simt: kernel '%s', block %lld: %s\n", block().name, static_cast<long long>(block().index), why);
  std::abort();
}

void leave(State state) {
  Coroutine& own = block().threads[static_cast<std::size_t>(block().current)];
  own.state = state;
  kvloom_simt_switch(&own.stack_top, block().scheduler);
}

void enter_thread() {
  (*block().body)();
  leave(State::kDone);
  std::abort();
}

void prepare(int thread) {
  if (block().stacks == nullptr) {
    block().stacks = static_cast<std::byte*>(mmap(nullptr, kStackBytes * kMostThreads, PROT_READ | PROT_WRITE,
                                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  }
  // Those who sleep for ever have left their frames behind.
  ASAN_UNPOISON_MEMORY_REGION(block().stacks + kStackBytes * static_cast<std::size_t>(thread + 1) - kLeftBytes,
                              kLeftBytes);
  // As if it had been switched away from at the entry of enter_thread: six registers, then the return address. The
  // stack is off by 8 from 16 there, as after a call.
  auto* top = reinterpret_cast<void**>(block().stacks + kStackBytes * static_cast<std::size_t>(thread + 1));
  top -= 2;
  *top = reinterpret_cast<void*>(&enter_thread);
  top -= 6;
  std::fill(top, top + 6, nullptr);
  block().threads[static_cast<std::size_t>(thread)] = {top, State::kReady};
}

void carry_out(const Copy& copy) {
  if (copy.from == nullptr) {
    std::memset(copy.to, 0, copy.bytes);
  } else {
    std::memcpy(copy.to, copy.from, copy.bytes);
  }
}

void resume(int thread) {
  block().current = thread;
  kvloom_simt_switch(&block().scheduler, block().threads[static_cast<std::size_t>(thread)].stack_top);
}

// Lets the lanes of a warp go on when all of them have come to an exchange.
bool release_warp(std::size_t warp) {
  auto& threads = block().threads;
  const std::size_t first = warp * kWarp;
  const std::size_t end = std::min(threads.size(), first + kWarp);
  const auto in_state = [&](State state) {
    return std::count_if(threads.begin() + static_cast<std::ptrdiff_t>(first),
                         threads.begin() + static_cast<std::ptrdiff_t>(end),
                         [&](const Coroutine& thread) { return thread.state == state; });
  };
  const auto waiting = in_state(State::kAtExchange);
  if (waiting == 0) return false;
  if (waiting != kWarp) {
    const bool hopeless = in_state(State::kDone) + in_state(State::kAtBarrier) > 0;
    if (hopeless || end - first != kWarp) give_up("lanes of a warp are missing from an exchange");
    return false;
  }
  block().warps[warp].turn ^= 1;
  for (std::size_t i = first; i < end; ++i) threads[i].state = State::kReady;
  return true;
}

bool is_ready(const Coroutine& thread) { return thread.state == State::kReady; }

bool has_ready_threads(std::size_t warp) {
  const auto begin = block().threads.begin() + static_cast<std::ptrdiff_t>(warp * kWarp);
  const std::size_t lanes = std::min<std::size_t>(kWarp, block().threads.size() - warp * kWarp);
  return std::any_of(begin, begin + static_cast<std::ptrdiff_t>(lanes), is_ready);
}

// In half of the blocks warps go on side by side, in the others one runs as far ahead of the rest as barriers let it:
// from the beginning, before the others have done anything. Returns whether any thread went on.
bool resume_threads(const std::vector<int>& order) {
  const auto& warps = block().warp_order;
  const auto ahead = std::find_if(warps.begin(), warps.end(), has_ready_threads);
  if (ahead == warps.end()) return false;
  for (const int thread : order) {
    if (block().one_ahead && static_cast<std::size_t>(thread / kWarp) != *ahead) continue;
    if (is_ready(block().threads[static_cast<std::size_t>(thread)])) resume(thread);
  }
  return true;
}

bool release_warps() {
  bool any = false;
  for (const std::size_t warp : block().warp_order) {
    any = release_warp(warp) || any;
    if (any && block().one_ahead) return true;
  }
  return any;
}

// Threads that have ended do not hold up a barrier.
bool release_block() {
  bool any = false;
  for (const Coroutine& thread : block().threads) {
    if (thread.state == State::kReady || thread.state == State::kAtExchange) return false;
    any = any || thread.state == State::kAtBarrier;
  }
  if (!any) return false;
  block().result = std::exchange(block().vote, false);
  for (Coroutine& thread : block().threads) {
    if (thread.state == State::kAtBarrier) thread.state = State::kReady;
  }
  return true;
}

// Each test's orders begin from its seed.
void take_seed() {
  const std::uint64_t made = test::newest_seed().made;
  if (std::exchange(block().seeds, made) != made) block().order.seed(test::newest_seed().seed);
}

void run_block(int threads) {
  take_seed();
  std::vector<int> order(static_cast<std::size_t>(threads));
  std::iota(order.begin(), order.end(), 0);
  for (int thread = 0; thread < threads; ++thread) prepare(thread);
  block().warp_order.resize(block().warps.size());
  std::iota(block().warp_order.begin(), block().warp_order.end(), std::size_t{0});
  std::shuffle(block().warp_order.begin(), block().warp_order.end(), block().order);
  block().one_ahead = block().order() % 2 == 0;
  block().copies_are_late = block().order() % 2 == 0;
  block().copies.assign(static_cast<std::size_t>(threads), {});
  while (true) {
    // One of: as numbered, backwards, shuffled.
    switch (block().order() % 3) {
      case 0:
        std::sort(order.begin(), order.end());
        break;
      case 1:
        std::sort(order.begin(), order.end(), std::greater<>());
        break;
      default:
        std::shuffle(order.begin(), order.end(), block().order);
    }
    const bool resumed = resume_threads(order);
    const bool released = release_warps();
    if (!resumed && !released && !release_block()) break;
  }
  for (const Coroutine& thread : block().threads) {
    if (thread.state != State::kDone) give_up("threads wait for ever");
  }
}

}  // namespace

int thread_index() { return block().current; }
int block_size() { return static_cast<int>(block().threads.size()); }
std::int64_t block_index() { return block().index; }
std::int64_t block_count() { return block().count; }
std::byte* dynamic_shared() { return block().shared.data(); }

void block_barrier() { leave(State::kAtBarrier); }

bool any_of_block(bool yes) {
  if (yes) block().vote = true;
  leave(State::kAtBarrier);
  return block().result;
}

void copy_async(void* to, const void* from, std::size_t bytes) {
  const Copy copy{to, from, bytes};
  if (!block().copies_are_late) return carry_out(copy);
  std::memset(to, 0xff, bytes);  // neither what was there nor what comes
  block().copies[static_cast<std::size_t>(block().current)].under_way.push_back(copy);
}

void end_copy_group() {
  Copies& own = block().copies[static_cast<std::size_t>(block().current)];
  own.group_ends.push_back(own.under_way.size());
}

void await_copy_groups(int most_under_way) {
  Copies& own = block().copies[static_cast<std::size_t>(block().current)];
  const auto groups = std::ssize(own.group_ends) - most_under_way;
  if (groups <= 0) return;
  const std::size_t done = own.group_ends[static_cast<std::size_t>(groups - 1)];
  std::for_each_n(own.under_way.begin(), done, carry_out);
  own.under_way.erase(own.under_way.begin(), own.under_way.begin() + static_cast<std::ptrdiff_t>(done));
  own.group_ends.erase(own.group_ends.begin(), own.group_ends.begin() + groups);
  for (std::size_t& end : own.group_ends) end -= done;
}

Lanes exchange(const void* own, std::size_t bytes) {
  const int thread = block().current;
  Warp& warp = block().warps[static_cast<std::size_t>(thread / kWarp)];
  const int turn = warp.turn;
  std::memcpy(warp.lanes[turn][thread % kWarp], own, bytes);
  leave(State::kAtExchange);
  return warp.lanes[turn];
}

void run_grid(const char* name, std::int64_t blocks, int threads, SharedMemory shared,
              const std::function<void()>& thread) {
  const DeviceMemoryAccess access;  // one thread's grid at a time
  Block& place = block();
  place.name = name;
  if (blocks < 0 || blocks > 0x7fffffff) give_up("too many blocks");
  if (threads < 1 || threads > kMostThreads) give_up("more threads than a block has");
  if (shared.bytes + kMostDeclared > shared.limit) give_up("more shared memory than a block gets");
  place.threads.assign(static_cast<std::size_t>(threads), {});
  place.warps.resize(static_cast<std::size_t>((threads + kWarp - 1) / kWarp));
  place.body = &thread;
  place.count = blocks;
  for (place.index = 0; place.index < blocks; ++place.index) {
    // What an earlier block left is not to be relied on.
    place.shared.assign(shared.bytes, std::byte{0xff});
    run_block(threads);
  }
}

}  // namespace kvloom::simt
