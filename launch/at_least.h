// A check of options that are whole numbers, whose message says what would be right.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>

namespace kvloom {

// `least` or more.
CLI::Validator at_least(std::int64_t least);

}  // namespace kvloom
