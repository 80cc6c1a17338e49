// Quantities as a person reads and writes them.
#pragma once

#include <cstdint>
#include <string>

namespace kvloom {

std::string format_bytes(double bytes);      // "1.5 MiB"
std::string format_count(double count);      // "1.5M"
std::string format_seconds(double seconds);  // "1h02m", "3m20s", "12s"

// "4GiB", "512 MiB", "1.5GB", "1000000": bytes. Throws InputError, naming the option, for anything else.
std::int64_t parse_bytes(const std::string& text, const std::string& option);

}  // namespace kvloom
