// Quantities as a person reads them.
#pragma once

#include <string>

namespace kvloom {

std::string format_bytes(double bytes);      // "1.5 MiB"
std::string format_count(double count);      // "1.5M"
std::string format_seconds(double seconds);  // "1h02m", "3m20s", "12s"

}  // namespace kvloom
