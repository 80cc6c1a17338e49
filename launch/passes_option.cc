#include "launch/passes_option.h"

#include "kernels/error.h"

namespace kvloom {

Passes passes_for(const std::optional<int>& given, const Passes& trained) {
  if (!given.has_value()) return trained;
  if (*given < 1 || *given > kMostPasses) reject_input("--passes: {}; right is 1 to {}", *given, kMostPasses);
  return {.without_gradient = *given - 1, .with_gradient = 1};
}

}  // namespace kvloom
