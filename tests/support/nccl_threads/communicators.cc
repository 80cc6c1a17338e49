// Communicators: their start, split and end.
#include <algorithm>
#include <cstring>
#include <string>

#include "tests/support/nccl_threads/group.h"

namespace {

using namespace kvloom::nccl_threads;

std::shared_ptr<Group> group_of(const ncclUniqueId& id, int size) {
  static std::mutex mutex;
  static std::map<std::string, std::shared_ptr<Group>> groups;
  const std::lock_guard lock(mutex);
  std::shared_ptr<Group>& group = groups[std::string(id.internal, sizeof(id.internal))];
  if (group == nullptr) group = std::make_shared<Group>(size);
  return group;
}

// This rank in the part of a split that it belongs to.
ncclComm_t part_of(const ncclComm& self, const Offer& own, Group::Meeting& meeting) {
  std::vector<std::pair<int, int>> members;  // key and former rank, in the order of the new ones
  for (std::size_t r = 0; r < meeting.offers.size(); ++r) {
    if (meeting.offers[r].color == own.color) members.emplace_back(meeting.offers[r].key, static_cast<int>(r));
  }
  std::ranges::sort(members);
  const auto at = std::ranges::find(members, self.rank, [](const auto& member) { return member.second; });
  std::shared_ptr<Group>& group = meeting.parts[own.color];
  if (group == nullptr) group = std::make_shared<Group>(static_cast<int>(members.size()));
  return new ncclComm(group, static_cast<int>(at - members.begin()));
}

void end(ncclComm_t communicator) {
  if (communicator->job.joinable()) communicator->job.join();
  // Streams come to the calls of one that was aborted when they can, and find it so.
  static std::mutex mutex;
  static std::vector<std::unique_ptr<ncclComm>> ended;
  const std::lock_guard lock(mutex);
  std::erase_if(ended, [](const auto& one) { return one->in_streams == 0; });
  ended.emplace_back(communicator);
}

}  // namespace

extern "C" {

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  static std::atomic<std::uint64_t> made{0};
  const std::uint64_t number = ++made;
  std::memset(id, 0, sizeof(*id));
  std::memcpy(id->internal, &number, sizeof(number));
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* communicator, int size, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  if (config->blocking != 0) return ncclInvalidUsage;
  *communicator = new ncclComm(group_of(id, size), rank);
  return begin(*communicator, [made = *communicator] { return made->group->meet(*made, {}, [](Group::Meeting&) {}); });
}

// Says success at once, and stores the part last of all.
ncclResult_t ncclCommSplit(ncclComm_t communicator, int color, int key, ncclComm_t* part, ncclConfig_t* config) {
  if (config->blocking != 0) return ncclInvalidUsage;
  *part = nullptr;
  const ncclResult_t code = begin(communicator, [=] {
    ncclComm_t made = nullptr;
    const Offer own{.color = color, .key = key};
    const ncclResult_t result = communicator->group->meet(
        *communicator, own, [](Group::Meeting&) {},
        [&](Group::Meeting& meeting) { made = part_of(*communicator, own, meeting); });
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    *part = made;
    return result;
  });
  return code == ncclInProgress ? ncclSuccess : code;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t communicator, ncclResult_t* state) {
  const ncclResult_t failure = communicator->failure;
  *state = failure != ncclSuccess ? failure : communicator->state.load();
  return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t communicator) {
  return begin(communicator, [] { return ncclSuccess; });
}

ncclResult_t ncclCommDestroy(ncclComm_t communicator) {
  if (communicator->state != ncclSuccess) return ncclInvalidArgument;
  while (communicator->in_streams > 0) std::this_thread::yield();
  end(communicator);
  return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t communicator) {
  {
    const std::lock_guard lock(communicator->group->mutex);
    communicator->aborted = true;
    communicator->group->changed.notify_all();
  }
  end(communicator);
  return ncclSuccess;
}

const char* ncclGetErrorString(ncclResult_t code) { return code == ncclSuccess ? "no error" : "refused"; }
const char* ncclGetLastError(ncclComm_t) { return ""; }

}  // extern "C"
