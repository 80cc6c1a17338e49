#include "tests/support/simt/streams.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <utility>

#include "tests/support/random.h"
#include "tests/support/simt/capture_state.h"
#include "tests/support/simt/device_memory.h"

namespace kvloom::simt {
namespace {

std::atomic<int> streams_at_work = 0;
std::atomic<unsigned> streams_made = 0;

class Stream {
 public:
  Stream() : chance_(static_cast<unsigned>(test::newest_seed().seed) + ++streams_made), thread_([this] { work(); }) {}
  ~Stream() {
    {
      const std::lock_guard lock(mutex_);
      ends_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  // `end`: at the moment at which the work counts as done.
  void give(
      std::function<void()> work, std::function<void()> end = [] {}) {
    {
      const std::lock_guard lock(mutex_);
      if (queue_.empty()) ++streams_at_work;
      queue_.push_back({std::move(work), std::move(end)});
    }
    changed_.notify_all();
  }
  void drain() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return queue_.empty(); });
  }
  bool is_idle() {
    const std::lock_guard lock(mutex_);
    return queue_.empty();
  }

 private:
  struct Item {
    std::function<void()> work;
    std::function<void()> end;
  };

  void work() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] { return ends_ || !queue_.empty(); });
      if (queue_.empty()) return;
      const Item& next = queue_.front();
      lock.unlock();
      if (chance_() % 16 == 0) std::this_thread::sleep_for(std::chrono::microseconds(chance_() % 400));
      next.work();
      lock.lock();
      next.end();
      queue_.pop_front();
      if (queue_.empty() && --streams_at_work == 0) close_device_memory();
      changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Item> queue_;  // the first is being done
  bool ends_ = false;
  std::minstd_rand chance_;
  std::thread thread_;
};

// How often an event has been recorded, and to which of these records its streams have come.
struct Event {
  std::mutex mutex;
  std::condition_variable changed;
  std::uint64_t recorded = 0;
  std::uint64_t reached = 0;

  std::uint64_t newest() {
    const std::lock_guard lock(mutex);
    return recorded;
  }
  std::uint64_t next() {
    const std::lock_guard lock(mutex);
    return ++recorded;
  }
  void reach(std::uint64_t record) {
    {
      const std::lock_guard lock(mutex);
      reached = std::max(reached, record);
    }
    changed.notify_all();
  }
  void wait_for(std::uint64_t record) {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return reached >= record; });
  }
};
using SharedEvent = std::shared_ptr<Event>;

Stream& stream_of(cudaStream_t stream) { return *reinterpret_cast<Stream*>(stream); }
SharedEvent& event_of(cudaEvent_t event) { return *reinterpret_cast<SharedEvent*>(event); }

}  // namespace

void enqueue(cudaStream_t stream, std::function<void()> work) { stream_of(stream).give(std::move(work)); }
void drain(cudaStream_t stream) { stream_of(stream).drain(); }
bool all_idle() { return streams_at_work == 0; }

}  // namespace kvloom::simt

using namespace kvloom::simt;  // NOLINT: these are CUDA's functions

extern "C" {

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = reinterpret_cast<cudaStream_t>(new Stream);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete &stream_of(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (const cudaError_t refused = refuse_while_recording(Refused::kAlways); refused != cudaSuccess) return refused;
  drain(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  if (const cudaError_t refused = refuse_while_recording(Refused::kAlways); refused != cudaSuccess) return refused;
  return stream_of(stream).is_idle() ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (is_recording(stream)) return cudaSuccess;
  const SharedEvent waited_for = event_of(event);
  stream_of(stream).give([waited_for, record = waited_for->newest()] { waited_for->wait_for(record); });
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = reinterpret_cast<cudaEvent_t>(new SharedEvent(std::make_shared<Event>()));
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete &event_of(event);
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (is_recording(stream)) return cudaSuccess;
  const SharedEvent recorded = event_of(event);
  stream_of(stream).give([] {}, [recorded, record = recorded->next()] { recorded->reach(record); });
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  if (const cudaError_t refused = refuse_while_recording(Refused::kAlways); refused != cudaSuccess) return refused;
  const std::lock_guard lock(event_of(event)->mutex);
  return event_of(event)->reached == event_of(event)->recorded ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (const cudaError_t refused = refuse_while_recording(Refused::kAlways); refused != cudaSuccess) return refused;
  const SharedEvent waited_for = event_of(event);
  waited_for->wait_for(waited_for->newest());
  return cudaSuccess;
}

}  // extern "C"
