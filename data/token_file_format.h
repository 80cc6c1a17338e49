// What the reader and the writer of token files agree on.
#pragma once

#include <cstddef>
#include <string_view>

namespace kvloom {

// The user block: [kTokenFileMagic][length u32][TokenFileHeader][XXH3-64 of all before].
inline constexpr std::string_view kTokenFileMagic = "KVLTOKEN";
inline constexpr std::size_t kTokenFileUserBlock = 4096;
// Tokens are checked in blocks of so many bytes.
inline constexpr std::size_t kTokenFileBlock = std::size_t{1} << 20;

}  // namespace kvloom
