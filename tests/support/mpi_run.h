// Runs under mpirun: the words that start one, and the processes that are its ranks.
#pragma once

#include <sys/types.h>

#include <cstdlib>
#include <filesystem>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "tests/support/process.h"

namespace kvloom::test {

inline bool has_mpirun() { return std::system("command -v mpirun >/dev/null 2>&1") == 0; }

// "mpirun ... -n <ranks> <program>", one thread a rank; ranks that outnumber the cores yield instead of spinning.
inline std::vector<std::string> mpirun(int ranks, const std::vector<std::string>& program) {
  std::vector<std::string> words = {"env",    "OMP_NUM_THREADS=1",   "OMPI_MCA_mpi_yield_when_idle=1",
                                    "mpirun", "--allow-run-as-root", "--oversubscribe",
                                    "-n",     std::to_string(ranks)};
  words.insert(words.end(), program.begin(), program.end());
  return words;
}

struct ProcessStat {
  char state = 'X';  // Linux's letter; X: there is no such process
  pid_t parent = 0;

  bool runs() const { return state != 'X' && state != 'Z'; }
};

inline ProcessStat stat_of(const std::string& process) {
  // "pid (name) state parent ..."
  const std::string text = content_of("/proc/" + process + "/stat");
  ProcessStat stat;
  if (text.rfind(')') == std::string::npos) return stat;
  std::istringstream fields(text.substr(text.rfind(')') + 1));
  fields >> stat.state >> stat.parent;
  return stat;
}

// Ranks' processes by rank, of the world that `mpirun` (a process) has started.
inline std::map<int, pid_t> ranks_of(pid_t mpirun) {
  std::map<int, pid_t> ranks;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", ignored)) {
    const std::string name = entry.path().filename().string();
    if (name.find_first_not_of("0123456789") != std::string::npos || stat_of(name).parent != mpirun) continue;
    const std::string environment = '\0' + content_of(entry.path() / "environ");
    const std::string variable = std::string(1, '\0') + "OMPI_COMM_WORLD_RANK=";
    const std::size_t at = environment.find(variable);
    if (at != std::string::npos) ranks[std::atoi(environment.c_str() + at + variable.size())] = std::stoi(name);
  }
  return ranks;
}

inline std::size_t count_of(const std::string& text, const std::string& part) {
  std::size_t count = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + part.size())) ++count;
  return count;
}

}  // namespace kvloom::test
