// Which files `kvloom tokenize` reads.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "infer/tokenize/pipeline.h"
#include "infer/tokenize/spooled_input.h"
#include "infer/tokenize/text_file.h"

namespace kvloom {

struct Source {
  TextFile file;
  std::string name;  // as the user knows it
};

// Each file once, whatever the ways to it.
class Sources {
 public:
  explicit Sources(const TokenizeRequest& request);

  // In the order of the request's inputs; folders are walked in the order of their names. Throws InputError for an
  // input that is missing, unreadable, no text or an output, and when there are none.
  const std::vector<Source>& all() const { return all_; }

  std::uint64_t repeated() const { return repeated_; }
  std::uint64_t hidden() const { return hidden_; }
  std::uint64_t skipped_links() const { return skipped_links_; }

 private:
  void add(const std::filesystem::path& path, const std::string& name);
  // Files of a folder and of all below it that match and are no output. Links to folders are not followed, so that
  // there are no circles.
  void find(const std::filesystem::path& folder, std::vector<std::filesystem::path>& found);
  bool is_taken(const std::filesystem::directory_entry& entry);

  const TokenizeRequest& request_;
  BytesRule bytes_;
  std::vector<Source> all_;
  std::vector<std::unique_ptr<SpooledInput>> spooled_;
  std::set<std::pair<dev_t, ino_t>> seen_;
  std::uint64_t repeated_ = 0;
  std::uint64_t hidden_ = 0;
  std::uint64_t skipped_links_ = 0;
};

// Whether the path is a file that the request will write.
bool is_output(const TokenizeRequest& request, const std::filesystem::path& path);

}  // namespace kvloom
