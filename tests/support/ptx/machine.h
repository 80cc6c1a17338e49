// Carries out kernels that program.h has read, block by block, on memory of the host. What compute-sanitizer would find
// ends the process with the line of PTX: accesses that are not aligned or beyond shared memory, shared memory that
// nobody has written, races for it between two barriers, lanes that are missing where a warp must be whole.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "tests/support/ptx/program.h"

namespace kvloom::ptx {

struct Launch {
  std::int64_t blocks;
  int threads;
  std::size_t dynamic_shared_bytes;
  std::vector<std::byte> parameters;
};

void run_kernel(const Kernel& kernel, const Launch& launch);

// Who wrote and who read shared memory, and when, two bytes at a time.
class SharedMemory {
 public:
  // A thread's place in time: what it did before the barriers that it has passed is before what others do behind them.
  struct Now {
    int thread;
    std::uint32_t block_epoch;
    std::uint32_t warp_epoch;
  };

  explicit SharedMemory(std::size_t bytes) : bytes_(bytes), written_(bytes / 2), read_(bytes / 2) {}

  // As a block finds it.
  void clear();

  std::byte* at(std::size_t address) { return bytes_.data() + address; }
  std::size_t size() const { return bytes_.size(); }

  // Empty, or what is wrong with the access.
  std::string note_read(std::size_t address, std::size_t bytes, const Now& now);
  std::string note_write(std::size_t address, std::size_t bytes, const Now& now);

 private:
  struct Trace {
    std::int16_t thread = -1;  // the last one; -1: none yet
    bool others = false;       // whether others have done so since the block's barrier
    bool other_warps = false;  // and some of them in other warps
    std::uint32_t block_epoch = 0;
    std::uint32_t warp_epoch = 0;
  };
  static bool is_before(const Trace& trace, const Now& now);

  std::vector<std::byte> bytes_;
  std::vector<Trace> written_;
  std::vector<Trace> read_;
};

struct Block {
  const Kernel& kernel;
  const Launch& launch;
  std::int64_t index;
  SharedMemory shared;
  std::uint32_t epoch;
  bool copies_at_once;  // else only when they are waited for
};

class Warp {
 public:
  Warp(Block& block, int first_thread);

  // Stands at the start of a block.
  void begin();
  // Goes on until all lanes have ended or wait for the block.
  void run();
  // The lanes that wait have passed their barrier; those that want to know get `vote`.
  void release(bool vote);
  std::uint32_t waiting() const { return waiting_; }
  bool has_ended() const { return alive_ == 0; }
  bool votes_yes() const { return vote_; }

  // For actions.
  Row& row(int index) { return rows_[static_cast<std::size_t>(index)]; }
  std::uint32_t alive() const { return alive_; }
  // Checked for alignment, and in shared memory for all that SharedMemory knows.
  const std::byte* readable(const Step& step, Space space, int lane, std::uint64_t address, std::size_t bytes);
  std::byte* writable(const Step& step, Space space, int lane, std::uint64_t address, std::size_t bytes);
  void copy_later(const Step& step, int lane, std::uint64_t to, std::uint64_t from, std::size_t bytes,
                  std::size_t valid_bytes);
  void end_copy_group(std::uint32_t lanes);
  void await_copies(std::uint32_t lanes, int groups_under_way);
  void pass_barrier() { ++epoch_; }
  void wait(std::uint32_t lanes, const Step& step, bool vote);
  [[noreturn]] void stop(const Step& step, int lane, const std::string& message) const;

 private:
  struct Copy {
    const Step* step;
    std::uint64_t to;
    const std::byte* from;
    std::size_t bytes;
    std::size_t valid_bytes;
  };
  struct Lane {
    int at = 0;
    std::vector<std::vector<Copy>> groups = {{}};  // the last one is open
  };

  SharedMemory::Now now(int lane) const { return {first_thread_ + lane, block_.epoch, epoch_}; }
  std::byte* place(const Step& step, Space space, int lane, std::uint64_t address, std::size_t bytes);
  void carry_out(const Copy& copy, int lane);
  std::uint32_t guarded(const Step& step, std::uint32_t lanes);
  std::uint32_t next_lanes() const;
  void take_step(std::uint32_t lanes);

  Block& block_;
  int first_thread_;
  std::uint32_t alive_ = 0;
  std::uint32_t waiting_ = 0;
  std::uint32_t together_ = 0;  // stand before what all lanes do at once
  bool vote_ = false;
  std::vector<std::pair<int, std::uint32_t>> voters_;  // rows and lanes
  std::uint32_t epoch_ = 1;
  std::vector<Row> rows_;
  std::vector<Lane> lanes_;
  std::vector<std::byte> local_;  // of all lanes
};

}  // namespace kvloom::ptx
