// Which files `kvloom tokenize` reads.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <set>
#include <utility>
#include <vector>

#include "launch/tokenize_pipeline.h"

namespace kvloom {

struct Source {
  std::filesystem::path path;
  std::uint64_t bytes;
};

// Each file once, whatever the ways to it.
class Sources {
 public:
  // Throws InputError when the file cannot be read.
  void add(const std::filesystem::path& path);

  const std::vector<Source>& all() const { return all_; }
  std::uint64_t repeated() const { return repeated_; }

 private:
  std::vector<Source> all_;
  std::set<std::pair<dev_t, ino_t>> seen_;
  std::uint64_t repeated_ = 0;
};

// In the order of the request's inputs; folders are walked in the order of their names. Throws InputError for an input
// that is missing, unreadable or an output, and when there are none.
Sources find_sources(const TokenizeRequest& request);

// Whether the path is a file that the request will write.
bool is_output(const TokenizeRequest& request, const std::filesystem::path& path);

}  // namespace kvloom
