#include "core/checkpoint_verify.h"

#include <algorithm>
#include <atomic>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "core/checkpoint_reader.h"

namespace kvloom {
namespace {

class Verification {
 public:
  Verification(const std::filesystem::path& folder, const std::function<void(const VerifyProgress&)>& progress)
      : folder_(folder), progress_(progress) {}

  void run(int threads) {
    readers_.emplace_back(folder_);
    const auto& files = readers_[0].manifest().files();
    for (const proto::ShardFile& file : files) done_.of_bytes += file.bytes();
    faults_.resize(static_cast<std::size_t>(files.size()));
    while (static_cast<int>(readers_.size()) < std::min(threads, files.size())) readers_.emplace_back(folder_);
    std::vector<std::thread> workers;
    for (CheckpointReader& reader : readers_) workers.emplace_back([&] { work(reader); });
    for (std::thread& worker : workers) worker.join();
    for (const std::exception_ptr& fault : faults_) {
      if (fault) std::rethrow_exception(fault);
    }
  }

 private:
  void work(CheckpointReader& reader) {
    for (std::size_t file = next_++; file < faults_.size(); file = next_++) {
      try {
        reader.verify_file(static_cast<std::uint32_t>(file));
      } catch (...) {
        faults_[file] = std::current_exception();
      }
      const std::scoped_lock lock(mutex_);
      done_.bytes += reader.manifest().files(static_cast<int>(file)).bytes();
      if (progress_) progress_(done_);
    }
  }

  const std::filesystem::path& folder_;
  std::deque<CheckpointReader> readers_;  // each is one thread's
  const std::function<void(const VerifyProgress&)>& progress_;
  std::vector<std::exception_ptr> faults_;  // by file
  std::atomic<std::size_t> next_ = 0;
  std::mutex mutex_;
  VerifyProgress done_{};
};

}  // namespace

void verify_checkpoint(const std::filesystem::path& folder, int threads,
                       const std::function<void(const VerifyProgress&)>& progress) {
  Verification(folder, progress).run(threads);
}

}  // namespace kvloom
