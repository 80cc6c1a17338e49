// A file that one process at a time has locked, by which writers of one name keep out of each other's way.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

namespace kvloom {

class LockFile {
 public:
  enum class State : std::uint8_t {
    kHeld,
    kTaken,       // another has it and keeps it for three seconds
    kNoLocks,     // the file system knows no locks: nobody is kept out
    kCannotOpen,  // the file cannot be there; error() says why
  };

  // Makes the file where there is none and locks it. `before` is called before each try, to make the folder that others
  // may have taken away.
  explicit LockFile(std::filesystem::path path, const std::function<void()>& before = {});
  // Takes the file away if it is held. The lock ends with the process too, however that ends.
  ~LockFile();
  LockFile(const LockFile&) = delete;
  LockFile& operator=(const LockFile&) = delete;

  State state() const { return state_; }
  int error() const { return error_; }
  const std::string& holder() const { return holder_; }  // of kTaken: who it is, in words

 private:
  // Whether that settled it.
  bool try_once();

  std::filesystem::path path_;
  State state_ = State::kCannotOpen;
  int descriptor_ = -1;
  int error_ = 0;
  std::string holder_;
};

// Held while a file or folder of that name is being written: a lock on ".<name>.lock" beside it. Throws InputError,
// naming the other process, where one has it. On a file system without locks nobody is kept out.
class TargetLock {
 public:
  explicit TargetLock(const std::filesystem::path& target);

 private:
  LockFile file_;
};

}  // namespace kvloom
