#include "train/background_loader.h"

#include <utility>

namespace kvloom {

BackgroundLoader::BackgroundLoader(std::function<MicroBatch(std::uint64_t)> read, std::uint64_t first,
                                   std::size_t ahead)
    : read_(std::move(read)), ahead_(ahead), thread_([this, first] { run(first); }) {}

BackgroundLoader::~BackgroundLoader() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void BackgroundLoader::run(std::uint64_t first) {
  for (std::uint64_t index = first;; ++index) {
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return stopping_ || ready_.size() < ahead_; });
      if (stopping_) return;
    }
    MicroBatch batch;
    std::exception_ptr failure;
    try {
      batch = read_(index);
    } catch (...) {
      failure = std::current_exception();
    }
    {
      const std::lock_guard lock(mutex_);
      if (failure == nullptr) ready_.push_back(std::move(batch));
      failure_ = failure;
    }
    changed_.notify_all();
    if (failure != nullptr) return;
  }
}

MicroBatch BackgroundLoader::next() {
  MicroBatch batch;
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !ready_.empty() || failure_ != nullptr; });
    if (ready_.empty()) std::rethrow_exception(failure_);
    batch = std::move(ready_.front());
    ready_.pop_front();
  }
  changed_.notify_all();
  return batch;
}

}  // namespace kvloom
