#include "launch/openmp_waiting.h"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string_view>
#include <system_error>

namespace kvloom {
namespace {

// About 15 ns each: more than passes between two loops of a layer, less than a time slice.
constexpr const char* kSpins = "2000";
// A decode step has loops of microseconds, and sampling between them; a team that sleeps meanwhile cost a tenth of
// decode's speed on two cores.
constexpr const char* kSpinsOfServing = "100000";

bool is_serving(char** argv) {
  if (argv[1] == nullptr) return false;
  const std::string_view verb = argv[1];
  if (verb == "generate" || verb == "serve") return true;
  return verb == "bench" && argv[2] != nullptr && std::string_view(argv[2]) == "serve";
}

}  // namespace

void spin_briefly(char** argv) {
  if (std::getenv("OMP_WAIT_POLICY") != nullptr || std::getenv("GOMP_SPINCOUNT") != nullptr) return;
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  // Started by way of a dynamic loader, this is the loader.
  if (error || program.filename().string().starts_with("ld-")) return;
  if (setenv("GOMP_SPINCOUNT", is_serving(argv) ? kSpinsOfServing : kSpins, 1) == 0) execv(program.c_str(), argv);
}

}  // namespace kvloom
