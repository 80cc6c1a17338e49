#include "launch/openmp_waiting.h"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <system_error>

namespace kvloom {
namespace {

// About 15 ns each: more than passes between two loops of a layer, less than a time slice.
constexpr const char* kSpins = "2000";

}  // namespace

void spin_briefly(char** argv) {
  if (std::getenv("OMP_WAIT_POLICY") != nullptr || std::getenv("GOMP_SPINCOUNT") != nullptr) return;
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  // Started by way of a dynamic loader, this is the loader.
  if (error || program.filename().string().starts_with("ld-")) return;
  if (setenv("GOMP_SPINCOUNT", kSpins, 1) == 0) execv(program.c_str(), argv);
}

}  // namespace kvloom
