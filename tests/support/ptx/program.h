// Kernels as nvcc leaves them in PTX, read into steps that a host can carry out (machine.h). Of the PTX ISA there is
// what kvloom's kernels are made of; anything else ends the process with the line that has it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace kvloom::ptx {

inline constexpr int kLanes = 32;
// What the lanes of a warp have in one register: the bits of a value, zeros above them.
using Row = std::array<std::uint64_t, kLanes>;

class Warp;
struct Step;
using Action = void (*)(const Step& step, Warp& warp, std::uint32_t lanes);

enum class Kind : std::uint8_t {
  kPlain,     // each lane for itself
  kBranch,    // to `target`
  kExit,      // of the lane
  kTogether,  // all lanes of the warp at once
  kBarrier,   // of the block; `to` of one that votes gets whether any thread says yes
  kBeyond,    // the end of the kernel, where nothing may come to
};
enum class Space : std::uint8_t { kGlobal, kShared, kParameter, kLocal };

// Bytes in a space, from a register's value on.
struct Place {
  int row = -1;
  std::int64_t offset = 0;
};

struct Step {
  Kind kind = Kind::kPlain;
  Action action = nullptr;
  int guard = -1;  // row of the predicate; -1: always
  bool guard_negated = false;
  std::vector<int> to;  // rows
  std::vector<int> from;
  int target = -1;  // step
  std::vector<Place> places;
  Space space = Space::kGlobal;
  int bytes = 0;           // of one element of an access
  bool is_signed = false;  // and so extended to the register's width
  int to_bits = 64;        // of the registers in `to`
  int count = 0;           // groups of copies that may be under way
  int line = 0;            // in the file
};

enum class Special : std::uint8_t { kThread, kThreads, kBlock, kBlocks };

struct Kernel {
  std::string name;
  std::string file;
  std::vector<Step> steps;
  std::vector<std::string> lines;  // of the file, for messages
  int rows = 0;
  std::vector<std::pair<int, std::uint64_t>> constants;
  std::vector<std::pair<int, Special>> specials;
  std::vector<std::pair<std::size_t, std::size_t>> parameters;  // offset, bytes
  std::size_t parameter_bytes = 0;
  std::size_t shared_bytes = 0;  // declared; dynamic memory follows
  std::size_t local_bytes = 0;   // of a thread
  int most_threads = 1024;
};

// Kernels by name, without what nvcc makes of a file's path in the names of unnamed namespaces.
std::map<std::string, Kernel> read_program(const std::vector<std::filesystem::path>& files);
std::string plain_name(std::string_view mangled);

// What an instruction does, by its parts between the points ("add", "s32"). Fills in what of the step follows from
// them. Null: unknown.
Action action_of(const std::vector<std::string>& words, Step& step);

[[noreturn]] void stop(const std::string& message);

}  // namespace kvloom::ptx
