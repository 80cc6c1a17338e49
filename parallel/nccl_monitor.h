// Watches over what NCCL does on the device: errors on the way, and operations that do not end.
#pragma once

#include <nccl.h>

#include <chrono>
#include <condition_variable>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "core/cuda_stream.h"

namespace kvloom {

// Throws Error naming the call and NCCL's reason unless `code` is success. `communicator` may be null.
void check_nccl(ncclResult_t code, const char* call, ncclComm_t communicator = nullptr);

// Before a communicator is made: NCCL takes memory of the device by itself, and fails where too little is left.
void make_room_for_nccl(int device, const MakeRoom& make_room);

class NcclHandle;

// One a rank. Its first failure aborts every handle; after that nothing but errors comes out.
class NcclMonitor {
 public:
  NcclMonitor(int device, std::chrono::milliseconds limit, std::function<void(const std::string&)> on_failure);
  ~NcclMonitor();
  NcclMonitor(const NcclMonitor&) = delete;
  NcclMonitor& operator=(const NcclMonitor&) = delete;

  std::chrono::milliseconds limit() const { return limit_; }

  void add(const std::shared_ptr<NcclHandle>& handle);

  // An operation on the device, between two events of its stream. Its time runs from when the first is reached: what
  // the stream waited for before does not count. `what` names operation, peers and size.
  void watch(std::string what, std::shared_ptr<CudaEvent> begun, std::shared_ptr<CudaEvent> done);

  // The host waits; throws when something has failed.
  void wait(const CudaEvent& event, const std::string& what);

  void throw_if_failed(const std::string& what) const;
  void fail_all(const std::string& reason);

 private:
  struct Watched {
    std::string what;
    std::shared_ptr<CudaEvent> begun;
    std::shared_ptr<CudaEvent> done;
    std::chrono::steady_clock::time_point since{};  // zero: not begun
  };

  void run();
  std::string reason_to_fail();
  std::vector<std::shared_ptr<NcclHandle>> living_handles();

  int device_;
  std::chrono::milliseconds limit_;
  std::function<void(const std::string&)> on_failure_;
  mutable std::mutex mutex_;
  std::condition_variable ending_;
  bool ends_ = false;
  std::string failure_;
  std::list<Watched> watched_;
  std::vector<std::weak_ptr<NcclHandle>> handles_;
  std::thread thread_;
};

// One NCCL communicator. Its calls do not block inside NCCL, so that an abort can always come between.
class NcclHandle {
 public:
  // Collective among the ranks that have the id. `blocks` > 0: the most blocks of the device that it takes.
  static std::shared_ptr<NcclHandle> open(NcclMonitor& monitor, const ncclUniqueId& id, int rank, int size,
                                          int blocks = 0);
  // Collective; ordered by key, then by rank.
  std::shared_ptr<NcclHandle> split(int color, int key);

  ~NcclHandle();
  NcclHandle(const NcclHandle&) = delete;
  NcclHandle& operator=(const NcclHandle&) = delete;

  // Runs NCCL calls (a whole group) and waits until NCCL has taken them in, which may take the other ranks: the first
  // ones connect. `what` says to others what did not come about.
  void call(const char* name, const std::string& what, const std::function<ncclResult_t(ncclComm_t)>& calls);

  void abort() noexcept;
  // Empty: none.
  std::string asynchronous_error();

 private:
  NcclHandle(NcclMonitor& monitor, ncclComm_t communicator) : monitor_(monitor), communicator_(communicator) {}
  std::chrono::milliseconds start_limit() const;
  void call(const char* name, const std::string& what, const std::function<ncclResult_t(ncclComm_t)>& calls,
            std::chrono::milliseconds limit);
  void settle(const char* name, const std::string& what, ncclResult_t code, std::chrono::milliseconds limit);
  ncclResult_t state(const char* name);  // success or in progress
  void require_alive(const char* name) const;

  NcclMonitor& monitor_;
  std::mutex mutex_;
  ncclComm_t communicator_;  // null: aborted
  // Where NCCL stores what a split makes: a wait for it may fail before NCCL comes to that, and the abort that follows
  // waits for NCCL.
  ncclComm_t part_ = nullptr;
};

}  // namespace kvloom
