// What one training at a time has on its output directory.
#pragma once

#include <filesystem>

namespace kvloom {

// A lock on the file `training.lock` in the directory, which says who has it. It ends with this object, and with the
// process, however that ends.
class OutputLock {
 public:
  // Makes the directory if there is none. Throws InputError, naming the other, if another training has the lock and
  // keeps it for three seconds, Error when the file cannot be written.
  explicit OutputLock(const std::filesystem::path& directory);
  ~OutputLock();
  OutputLock(const OutputLock&) = delete;
  OutputLock& operator=(const OutputLock&) = delete;

  // False on file systems that know no locks: then nobody is kept out.
  bool is_held() const { return held_; }

 private:
  int descriptor_ = -1;
  bool held_ = false;
};

}  // namespace kvloom
