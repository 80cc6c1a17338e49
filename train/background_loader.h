// Makes the batches of coming steps in a thread of its own, so that a slow disk stalls no step.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace kvloom {

// Token ids and what should follow each, row-major [sequences * context].
struct MicroBatch {
  std::vector<std::int32_t> tokens;
  std::vector<std::int32_t> targets;
};

class BackgroundLoader {
 public:
  // `read(n)` makes micro-batch n; it is called by one thread, for n = first, first + 1, ..., at most `ahead` (1 or
  // more) of them before they are asked for.
  BackgroundLoader(std::function<MicroBatch(std::uint64_t)> read, std::uint64_t first, std::size_t ahead);
  // Waits for no more than the micro-batch being read.
  ~BackgroundLoader();
  BackgroundLoader(const BackgroundLoader&) = delete;
  BackgroundLoader& operator=(const BackgroundLoader&) = delete;

  // Micro-batches in order, each once. Throws what `read` threw for this one, and again for every later call.
  MicroBatch next();

 private:
  void run(std::uint64_t first);

  std::function<MicroBatch(std::uint64_t)> read_;
  std::size_t ahead_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<MicroBatch> ready_;
  std::exception_ptr failure_;
  bool stopping_ = false;
  std::thread thread_;  // the last member: it uses all the others
};

}  // namespace kvloom
