// A text file in pieces, so that memory does not grow with it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>

namespace kvloom {

inline constexpr std::uint64_t kNoBoundary = std::numeric_limits<std::uint64_t>::max();

// Pieces have about `size` bytes and end with a line where they can. None lies on both sides of `boundary`: the last
// piece before it ends there, or with the line before it.
class PieceReader {
 public:
  // Throws InputError when the file cannot be opened.
  PieceReader(const std::filesystem::path& path, std::size_t size, std::uint64_t boundary = kNoBoundary);

  // False at the end. Throws InputError when reading fails.
  bool next(std::string& piece);

  // Whether the last piece was.
  bool is_past_boundary() const { return is_past_boundary_; }

 private:
  std::filesystem::path path_;
  std::size_t size_;
  std::uint64_t boundary_;
  std::ifstream file_;
  std::uint64_t place_ = 0;  // bytes read
  std::string rest_;
  bool is_past_boundary_ = false;
};

}  // namespace kvloom
