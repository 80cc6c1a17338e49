// How benchmarks print.
#pragma once

#include <cstdint>

namespace kvloom {

enum class BenchForm : std::uint8_t { kText, kJson };

}  // namespace kvloom
