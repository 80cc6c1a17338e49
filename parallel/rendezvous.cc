#include "parallel/rendezvous.h"

#include <charconv>
#include <limits>

#include "kernels/error.h"
#include "parallel/rendezvous_ways.h"

namespace kvloom {
namespace {

using Lookup = std::function<const char*(const char*)>;

constexpr int kLargestWorld = 1 << 20;

int whole_number(const char* name, const std::string& text, int lowest, int highest) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < lowest || value > highest) {
    reject_input("{}={} makes no sense: a whole number from {} to {} is wanted", name, text, lowest, highest);
  }
  return value;
}

int required_number(const Lookup& lookup, const char* name, const char* because, int lowest, int highest) {
  const char* text = lookup(name);
  if (text == nullptr) reject_input("{} is set, but {} is not: both are needed", because, name);
  return whole_number(name, text, lowest, highest);
}

// The names under which one launcher tells a rank what it is.
struct Names {
  const char* rank;
  const char* world_size;
  const char* local_rank;
};

RankNumbers numbers(const Lookup& lookup, const Names& names) {
  RankNumbers place;
  place.rank = whole_number(names.rank, lookup(names.rank), 0, kLargestWorld);
  place.world_size = required_number(lookup, names.world_size, names.rank, 1, kLargestWorld);
  if (place.rank >= place.world_size) {
    reject_input("{}={} does not fit {}={}: ranks are numbered from 0", names.rank, place.rank, names.world_size,
                 place.world_size);
  }
  const char* local = lookup(names.local_rank);
  place.local_rank = local == nullptr ? place.rank : whole_number(names.local_rank, local, 0, kLargestWorld);
  return place;
}

// A batch script has SLURM_PROCID too, but is no rank: only what srun starts is.
bool in_slurm_step(const Lookup& lookup) {
  if (lookup("SLURM_PROCID") == nullptr) return false;
  return lookup("SLURM_STEP_ID") != nullptr || lookup("SLURM_JOB_ID") == nullptr;
}

void choose_where(const Lookup& lookup, bool slurm, MeetingPlace& place) {
  if (const char* file = lookup("KVLOOM_RENDEZVOUS_FILE")) {
    place.file = file;
    return;
  }
  if (place.world_size == 1) return;
  const char* machines = nullptr;
  if (slurm) {
    machines = lookup("SLURM_STEP_NODELIST");
    if (machines == nullptr) machines = lookup("SLURM_JOB_NODELIST");
  }
  if (const char* address = lookup("MASTER_ADDR")) {
    place.address = address;
  } else if (machines != nullptr) {
    place.address = first_machine(machines);
  } else {
    reject_input("{} ranks cannot meet: set MASTER_ADDR and MASTER_PORT, or KVLOOM_RENDEZVOUS_FILE", place.world_size);
  }
  const char* job = slurm ? lookup("SLURM_JOB_ID") : nullptr;
  if (lookup("MASTER_PORT") == nullptr && job != nullptr) {
    place.port = 15000 + whole_number("SLURM_JOB_ID", job, 0, std::numeric_limits<int>::max()) % 15000;
  } else {
    place.port = required_number(lookup, "MASTER_PORT", "MASTER_ADDR", 1, 65535);
  }
}

}  // namespace

std::optional<RankNumbers> rank_numbers(const Lookup& lookup) {
  if (lookup("RANK") != nullptr) return numbers(lookup, {"RANK", "WORLD_SIZE", "LOCAL_RANK"});
  if (!in_slurm_step(lookup)) return std::nullopt;
  return numbers(lookup, {"SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"});
}

std::optional<MeetingPlace> meeting_place(const Lookup& lookup) {
  const auto numbers = rank_numbers(lookup);
  if (!numbers.has_value()) return std::nullopt;
  MeetingPlace place{.rank = numbers->rank, .world_size = numbers->world_size, .local_rank = numbers->local_rank};
  choose_where(lookup, lookup("RANK") == nullptr, place);
  if (const char* seconds = lookup("KVLOOM_RENDEZVOUS_SECONDS")) {
    place.limit = std::chrono::seconds(whole_number("KVLOOM_RENDEZVOUS_SECONDS", seconds, 1, 1000000));
  }
  return place;
}

std::string first_machine(const std::string& machines) {
  const std::size_t end = machines.find_first_of(",[");
  if (end == std::string::npos || machines[end] == ',') return machines.substr(0, end);
  const std::size_t close = machines.find(']', end);
  const std::size_t number_end = machines.find_first_of(",-]", end + 1);
  if (close == std::string::npos) reject_input("'{}' is no list of machines: ']' is missing", machines);
  const std::size_t tail_end = machines.find_first_of(",[", close);
  return machines.substr(0, end) + machines.substr(end + 1, number_end - end - 1) +
         machines.substr(close + 1, tail_end == std::string::npos ? tail_end : tail_end - close - 1);
}

std::string meet(const MeetingPlace& place, const std::string& bytes) {
  if (place.world_size == 1) return bytes;
  if (!place.file.empty()) return meet_at_file(place, bytes);
  return place.rank == 0 ? gather_at_socket(place, bytes) : come_to_socket(place);
}

}  // namespace kvloom
