#include "parallel/nccl_monitor.h"

#include <algorithm>
#include <exception>
#include <utility>

#include "kernels/error.h"

namespace kvloom {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kBetweenLooks{50};
constexpr std::chrono::microseconds kAwake{300};
constexpr std::chrono::microseconds kAsleep{50};
constexpr std::size_t kRoom = std::size_t{1}
                              << 30;  // more than the buffers of any communicator of NCCL 2.28's defaults
constexpr std::chrono::milliseconds kLeastStart = std::chrono::minutes(1);  // NCCL looks at the whole machine

// Looks again and again at what takes microseconds most often, less than it does to fall asleep and wake up.
class Wait {
 public:
  Clock::duration lasts() const { return Clock::now() - begin_; }

  // Between two looks.
  void pause() const {
    if (lasts() < kAwake) return std::this_thread::yield();
    std::this_thread::sleep_for(kAsleep);
  }

 private:
  Clock::time_point begin_ = Clock::now();
};

double seconds(Clock::duration time) { return std::chrono::duration<double>(time).count(); }

ncclConfig_t without_blocking(int blocks) {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  if (blocks > 0) {
    config.minCTAs = 1;
    config.maxCTAs = blocks;
  }
  return config;
}

}  // namespace

void check_nccl(ncclResult_t code, const char* call, ncclComm_t communicator) {
  if (code == ncclSuccess) return;
  const char* more = ncclGetLastError(communicator);
  fail("{}: {}{}{}", call, ncclGetErrorString(code), more != nullptr && *more != '\0' ? ": " : "",
       more != nullptr ? more : "");
}

void make_room_for_nccl(int device, const MakeRoom& make_room) {
  if (make_room && free_device_bytes(device) < kRoom) make_room();
}

NcclMonitor::NcclMonitor(int device, std::chrono::milliseconds limit,
                         std::function<void(const std::string&)> on_failure)
    : device_(device), limit_(limit), on_failure_(std::move(on_failure)), thread_([this] { run(); }) {}

NcclMonitor::~NcclMonitor() {
  {
    const std::lock_guard lock(mutex_);
    ends_ = true;
  }
  ending_.notify_all();
  thread_.join();
}

void NcclMonitor::add(const std::shared_ptr<NcclHandle>& handle) {
  throw_if_failed("NCCL");
  const std::lock_guard lock(mutex_);
  handles_.push_back(handle);
}

void NcclMonitor::watch(std::string what, std::shared_ptr<CudaEvent> begun, std::shared_ptr<CudaEvent> done) {
  const std::lock_guard lock(mutex_);
  watched_.push_back({std::move(what), std::move(begun), std::move(done)});
}

void NcclMonitor::wait(const CudaEvent& event, const std::string& what) {
  for (const Wait wait; !event.reached(); wait.pause()) throw_if_failed(what);
  throw_if_failed(what);  // an abort ends what the event waited for
}

void NcclMonitor::throw_if_failed(const std::string& what) const {
  const std::lock_guard lock(mutex_);
  if (!failure_.empty()) fail("{}: {}", what, failure_);
}

void NcclMonitor::fail_all(const std::string& reason) {
  {
    const std::lock_guard lock(mutex_);
    if (!failure_.empty()) return;
    failure_ = reason;
    watched_.clear();
  }
  for (const auto& handle : living_handles()) handle->abort();
  if (on_failure_) on_failure_(reason);
}

std::vector<std::shared_ptr<NcclHandle>> NcclMonitor::living_handles() {
  const std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<NcclHandle>> living;
  std::erase_if(handles_, [](const auto& handle) { return handle.expired(); });
  for (const auto& handle : handles_) {
    if (auto held = handle.lock()) living.push_back(std::move(held));
  }
  return living;
}

void NcclMonitor::run() {
  std::unique_lock lock(mutex_);
  while (!ending_.wait_for(lock, kBetweenLooks, [this] { return ends_; })) {
    if (!failure_.empty()) continue;
    lock.unlock();
    std::string reason;
    try {
      enter_cuda_device(device_);
      reason = reason_to_fail();
    } catch (const std::exception& error) {
      reason = error.what();  // the device itself is lost
    }
    if (!reason.empty()) fail_all(reason);
    lock.lock();
  }
}

std::string NcclMonitor::reason_to_fail() {
  for (const auto& handle : living_handles()) {
    const std::string error = handle->asynchronous_error();
    if (!error.empty()) return error;
  }
  const std::lock_guard lock(mutex_);
  const Clock::time_point now = Clock::now();
  for (auto entry = watched_.begin(); entry != watched_.end();) {
    if (entry->done->reached()) {
      entry = watched_.erase(entry);
      continue;
    }
    if (entry->since == Clock::time_point{}) {
      if (entry->begun->reached()) entry->since = now;
    } else if (now - entry->since > limit_) {
      return fmt::format("{} was stuck for {:.1f} s and has been aborted", entry->what, seconds(now - entry->since));
    }
    ++entry;
  }
  return "";
}

std::shared_ptr<NcclHandle> NcclHandle::open(NcclMonitor& monitor, const ncclUniqueId& id, int rank, int size,
                                             int blocks) {
  ncclConfig_t config = without_blocking(blocks);
  ncclComm_t communicator = nullptr;
  const ncclResult_t code = ncclCommInitRankConfig(&communicator, size, id, rank, &config);
  if (code != ncclInProgress) check_nccl(code, "ncclCommInitRankConfig");
  const std::shared_ptr<NcclHandle> handle(new NcclHandle(monitor, communicator));
  monitor.add(handle);
  handle->settle("ncclCommInitRankConfig", fmt::format("start of {} ranks on rank {}", size, rank), code,
                 handle->start_limit());
  return handle;
}

std::shared_ptr<NcclHandle> NcclHandle::split(int color, int key) {
  ncclConfig_t config = without_blocking(0);
  // NCCL's success says that it has begun: a thread of its own makes the part, and stores it before the state of what
  // is split says that this is done.
  const auto begin = [&](ncclComm_t communicator) {
    const ncclResult_t code = ncclCommSplit(communicator, color, key, &part_, &config);
    return code == ncclSuccess ? ncclInProgress : code;
  };
  call("ncclCommSplit", fmt::format("split by color {}, key {}", color, key), begin, start_limit());
  if (part_ == nullptr) fail("ncclCommSplit: done, and there is no part for color {}, key {}", color, key);
  const std::shared_ptr<NcclHandle> handle(new NcclHandle(monitor_, std::exchange(part_, nullptr)));
  monitor_.add(handle);
  return handle;
}

// What has been given to NCCL still runs to its end, unless this rank is on its way down.
NcclHandle::~NcclHandle() {
  try {
    if (std::uncaught_exceptions() == 0) {
      call("ncclCommFinalize", "end", [](ncclComm_t communicator) { return ncclCommFinalize(communicator); });
      const std::lock_guard lock(mutex_);
      if (communicator_ != nullptr) ncclCommDestroy(communicator_);
      communicator_ = nullptr;
    }
  } catch (const std::exception&) {
    // Aborted below; the reason has been told where the operation was called.
  }
  abort();
}

std::chrono::milliseconds NcclHandle::start_limit() const { return std::max(monitor_.limit(), kLeastStart); }

void NcclHandle::call(const char* name, const std::string& what, const std::function<ncclResult_t(ncclComm_t)>& calls) {
  call(name, what, calls, monitor_.limit());
}

void NcclHandle::call(const char* name, const std::string& what, const std::function<ncclResult_t(ncclComm_t)>& calls,
                      std::chrono::milliseconds limit) {
  ncclResult_t code = ncclSuccess;
  {
    const std::lock_guard lock(mutex_);
    require_alive(name);
    code = calls(communicator_);
    if (code != ncclInProgress) check_nccl(code, name, communicator_);
  }
  settle(name, what, code, limit);
}

void NcclHandle::settle(const char* name, const std::string& what, ncclResult_t code, std::chrono::milliseconds limit) {
  const Wait wait;
  while (code == ncclInProgress) {
    if (wait.lasts() > limit) {
      monitor_.fail_all(
          fmt::format("{} ({}): the other ranks did not come within {:.1f} s", what, name, seconds(limit)));
    }
    monitor_.throw_if_failed(name);
    code = state(name);
    if (code == ncclInProgress) wait.pause();
  }
}

ncclResult_t NcclHandle::state(const char* name) {
  const std::lock_guard lock(mutex_);
  require_alive(name);
  ncclResult_t code = ncclSuccess;
  check_nccl(ncclCommGetAsyncError(communicator_, &code), "ncclCommGetAsyncError", communicator_);
  if (code != ncclInProgress) check_nccl(code, name, communicator_);
  return code;
}

void NcclHandle::require_alive(const char* name) const {
  if (communicator_ != nullptr) return;
  monitor_.throw_if_failed(name);
  fail("{}: the NCCL communicator has been aborted", name);
}

void NcclHandle::abort() noexcept {
  const std::lock_guard lock(mutex_);
  if (communicator_ != nullptr) ncclCommAbort(std::exchange(communicator_, nullptr));
}

std::string NcclHandle::asynchronous_error() {
  const std::lock_guard lock(mutex_);
  if (communicator_ == nullptr) return "";
  ncclResult_t state = ncclSuccess;
  check_nccl(ncclCommGetAsyncError(communicator_, &state), "ncclCommGetAsyncError", communicator_);
  if (state == ncclSuccess || state == ncclInProgress) return "";
  const char* more = ncclGetLastError(communicator_);
  return fmt::format("NCCL failed on the way: {} ({})", ncclGetErrorString(state), more == nullptr ? "" : more);
}

}  // namespace kvloom
