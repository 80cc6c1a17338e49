// What one training, or one evaluation, at a time has on its output directory.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "core/lock_file.h"

namespace kvloom {

// Who is kept apart from whom: those whose locks have the same file. Trainings and evaluations may share a directory.
struct LockKind {
  const char* file;    // in the directory; says who has it
  const char* option;  // that named the directory
  const char* doing;   // "is being <doing> into by ..."
};

inline constexpr LockKind kTrainingLock{"training.lock", "output.directory", "trained"};
inline constexpr LockKind kEvaluationLock{"evaluation.lock", "--output", "evaluated"};

// A lock on a file in the directory. It ends with this object, which takes the file away, and with the process, however
// that ends.
class OutputLock {
 public:
  // Makes the directory if there is none. Throws InputError when it is no directory, or it or the file cannot be there
  // (permissions, length, a link to nothing), or, naming the other, if another has the lock and keeps it for three
  // seconds; Error when the machine fails.
  explicit OutputLock(const std::filesystem::path& directory, const LockKind& kind = kTrainingLock);
  // A directory that it made and that is still empty goes too: nothing was started.
  ~OutputLock();
  OutputLock(const OutputLock&) = delete;
  OutputLock& operator=(const OutputLock&) = delete;

  // False on file systems that know no locks: then nobody is kept out.
  bool is_held() const { return lock_->state() == LockFile::State::kHeld; }

 private:
  void make_directory(const LockKind& kind);
  [[noreturn]] void refuse(const LockKind& kind, const std::string& what, int error) const;

  std::filesystem::path directory_;
  bool made_directory_ = false;
  std::unique_ptr<LockFile> lock_;
};

}  // namespace kvloom
