// Collectives and messages, each done by its stream when all that it needs has come.
#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/dtype.h"
#include "tests/support/nccl_threads/group.h"
#include "tests/support/simt/device_memory.h"

namespace {

using kvloom::BFloat16;
using kvloom::simt::DeviceMemoryAccess;
using namespace kvloom::nccl_threads;

struct GroupCall {
  ncclComm_t communicator;
  cudaStream_t stream;
  int peer;
  const void* sent;  // null: this receives
  void* received;
  std::size_t bytes;
};

thread_local int group_depth = 0;
thread_local std::vector<GroupCall> group_calls;

std::size_t bytes_of(ncclDataType_t type) {
  switch (type) {
    case ncclUint8:
      return 1;
    case ncclBfloat16:
      return 2;
    case ncclFloat32:
    case ncclInt32:
      return 4;
    default:
      return 8;
  }
}

template <typename T>
void reduce_into(T* to, const T* from, std::size_t count, ncclRedOp_t operation) {
  for (std::size_t i = 0; i < count; ++i) to[i] = operation == ncclSum ? T(to[i] + from[i]) : std::max(to[i], from[i]);
}

void reduce_bf16_into(BFloat16* to, const BFloat16* from, std::size_t count, ncclRedOp_t operation) {
  for (std::size_t i = 0; i < count; ++i) {
    const auto a = static_cast<float>(to[i]), b = static_cast<float>(from[i]);
    to[i] = BFloat16(operation == ncclSum ? a + b : std::max(a, b));
  }
}

void reduce_into(void* to, const void* from, std::size_t count, ncclDataType_t type, ncclRedOp_t operation) {
  const auto typed = [&]<typename T>(T*) {
    reduce_into(static_cast<T*>(to), static_cast<const T*>(from), count, operation);
  };
  if (type == ncclFloat32) return typed(static_cast<float*>(nullptr));
  if (type == ncclFloat64) return typed(static_cast<double*>(nullptr));
  if (type == ncclInt32) return typed(static_cast<std::int32_t*>(nullptr));
  if (type == ncclInt64) return typed(static_cast<std::int64_t*>(nullptr));
  if (type == ncclUint8) return typed(static_cast<std::uint8_t*>(nullptr));
  reduce_bf16_into(static_cast<BFloat16*>(to), static_cast<const BFloat16*>(from), count, operation);
}

// All ranks' inputs, reduced.
std::vector<std::byte> reduced(const std::vector<Offer>& offers, std::size_t count, ncclDataType_t type,
                               ncclRedOp_t operation) {
  std::vector<std::byte> result(count * bytes_of(type));
  std::memcpy(result.data(), offers.front().input, result.size());
  for (std::size_t r = 1; r < offers.size(); ++r) reduce_into(result.data(), offers[r].input, count, type, operation);
  return result;
}

template <typename Work>
ncclResult_t collective(ncclComm_t communicator, cudaStream_t stream, const void* input, void* output, Work work) {
  return begin_in(stream, communicator, [=] {
    return communicator->group->meet(*communicator, {.input = input, .output = output}, [&](Group::Meeting& meeting) {
      const DeviceMemoryAccess access;
      work(meeting.offers);
    });
  });
}

ncclResult_t exchange(ncclComm& self, const std::vector<GroupCall>& calls) {
  Group& group = *self.group;
  std::unique_lock lock(group.mutex);
  std::vector<std::shared_ptr<Message>> sent;
  for (const GroupCall& call : calls) {
    if (call.sent == nullptr) continue;
    sent.push_back(std::make_shared<Message>(Message{call.sent, call.bytes}));
    group.messages[{self.rank, call.peer}].push_back(sent.back());
  }
  group.changed.notify_all();
  for (const GroupCall& call : calls) {
    if (call.sent != nullptr) continue;
    auto& queue = group.messages[{call.peer, self.rank}];
    group.changed.wait(lock, [&] { return !queue.empty() || self.aborted; });
    if (queue.empty() || queue.front()->bytes != call.bytes) return ncclInternalError;
    {
      const DeviceMemoryAccess access;
      std::memcpy(call.received, queue.front()->data, call.bytes);
    }
    queue.front()->taken = true;
    queue.pop_front();
    group.changed.notify_all();
  }
  const auto all_taken = [&] { return std::ranges::all_of(sent, [](const auto& one) { return one->taken; }); };
  group.changed.wait(lock, [&] { return all_taken() || self.aborted; });
  // What was aborted is nobody's to take.
  for (auto& [ends, queue] : group.messages) {
    std::erase_if(queue, [&](const auto& message) { return std::ranges::find(sent, message) != sent.end(); });
  }
  return all_taken() ? ncclSuccess : ncclInternalError;
}

}  // namespace

extern "C" {

ncclResult_t ncclGroupStart() {
  ++group_depth;
  return ncclSuccess;
}

ncclResult_t ncclGroupEnd() {
  if (--group_depth > 0 || group_calls.empty()) return ncclSuccess;
  const std::vector<GroupCall> calls = std::exchange(group_calls, {});
  const ncclComm_t communicator = calls.front().communicator;
  const cudaStream_t stream = calls.front().stream;
  const auto goes_along = [&](const GroupCall& call) {
    return call.communicator == communicator && call.stream == stream;
  };
  if (!std::ranges::all_of(calls, goes_along)) return ncclInvalidUsage;
  return begin_in(stream, communicator, [communicator, calls] { return exchange(*communicator, calls); });
}

ncclResult_t ncclSend(const void* data, std::size_t count, ncclDataType_t type, int peer, ncclComm_t communicator,
                      cudaStream_t stream) {
  ncclGroupStart();
  group_calls.push_back({communicator, stream, peer, data, nullptr, count * bytes_of(type)});
  return ncclGroupEnd();
}

ncclResult_t ncclRecv(void* data, std::size_t count, ncclDataType_t type, int peer, ncclComm_t communicator,
                      cudaStream_t stream) {
  ncclGroupStart();
  group_calls.push_back({communicator, stream, peer, nullptr, data, count * bytes_of(type)});
  return ncclGroupEnd();
}

ncclResult_t ncclAllReduce(const void* input, void* output, std::size_t count, ncclDataType_t type,
                           ncclRedOp_t operation, ncclComm_t communicator, cudaStream_t stream) {
  return collective(communicator, stream, input, output, [=](const std::vector<Offer>& offers) {
    const auto sum = reduced(offers, count, type, operation);
    for (const Offer& offer : offers) std::memcpy(offer.output, sum.data(), sum.size());
  });
}

ncclResult_t ncclReduce(const void* input, void* output, std::size_t count, ncclDataType_t type, ncclRedOp_t operation,
                        int root, ncclComm_t communicator, cudaStream_t stream) {
  return collective(communicator, stream, input, output, [=](const std::vector<Offer>& offers) {
    const auto sum = reduced(offers, count, type, operation);
    std::memcpy(offers[static_cast<std::size_t>(root)].output, sum.data(), sum.size());
  });
}

ncclResult_t ncclReduceScatter(const void* input, void* output, std::size_t count, ncclDataType_t type,
                               ncclRedOp_t operation, ncclComm_t communicator, cudaStream_t stream) {
  return collective(communicator, stream, input, output, [=](const std::vector<Offer>& offers) {
    const auto sum = reduced(offers, count * offers.size(), type, operation);
    const std::size_t bytes = count * bytes_of(type);
    for (std::size_t r = 0; r < offers.size(); ++r) std::memcpy(offers[r].output, sum.data() + r * bytes, bytes);
  });
}

ncclResult_t ncclAllGather(const void* input, void* output, std::size_t count, ncclDataType_t type,
                           ncclComm_t communicator, cudaStream_t stream) {
  return collective(communicator, stream, input, output, [=](const std::vector<Offer>& offers) {
    const std::size_t bytes = count * bytes_of(type);
    for (const Offer& to : offers) {
      for (std::size_t r = 0; r < offers.size(); ++r) {
        std::memcpy(static_cast<std::byte*>(to.output) + r * bytes, offers[r].input, bytes);
      }
    }
  });
}

ncclResult_t ncclBroadcast(const void* input, void* output, std::size_t count, ncclDataType_t type, int root,
                           ncclComm_t communicator, cudaStream_t stream) {
  return collective(communicator, stream, input, output, [=](const std::vector<Offer>& offers) {
    for (const Offer& to : offers) {
      std::memmove(to.output, offers[static_cast<std::size_t>(root)].input, count * bytes_of(type));
    }
  });
}

}  // extern "C"
