// Ranks over NCCL without a GPU: threads, what stands for CUDA (support/simt) and for NCCL (support/nccl_threads).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>

#include "kernels/error.h"
#include "parallel/nccl_communicator.h"
#include "parallel/nccl_monitor.h"
#include "parallel/thread_ranks.h"
#include "tests/support/communicator_contract.h"
#include "tests/support/device_buffers.h"
#include "tests/support/random.h"

namespace kvloom {

using test::CommunicatorContract;

namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

void on_threads(int ranks, const std::function<void(Communicator& nccl, const CudaStream& compute)>& body) {
  run_thread_ranks(ranks, [&](Communicator& host) {
    const CudaStream compute(0);
    const auto nccl = make_nccl_communicator(host, compute, {.limit = std::chrono::seconds(60)});
    body(*nccl, compute);
    nccl->barrier();
  });
}

test::Ranks with_host_buffers(int ranks) {
  return {fmt::format("host_buffers_{}", ranks), [ranks](const test::Body& body) {
            const std::uint64_t seed = test::Random().seed() >> 16;
            on_threads(ranks, [&](Communicator& nccl, const CudaStream&) { body(nccl, seed); });
          }};
}

test::Ranks with_device_buffers(int ranks) {
  return {fmt::format("device_buffers_{}", ranks), [ranks](const test::Body& body) {
            const std::uint64_t seed = test::Random().seed() >> 16;
            on_threads(ranks, [&](Communicator& nccl, const CudaStream& compute) {
              test::DeviceBuffers on_device(nccl, compute);
              body(on_device, seed);
            });
          }};
}

INSTANTIATE_TEST_SUITE_P(NcclOfThreads, CommunicatorContract,
                         ::testing::Values(with_host_buffers(1), with_host_buffers(3), with_device_buffers(1),
                                           with_device_buffers(2), with_device_buffers(4)),
                         test::name_of_ranks);

TEST(NcclHandle, ASplitThatIsAbortedThrowsAndLeavesNcclAPlaceToStoreThePart) {
  std::promise<std::string> telling;
  NcclMonitor monitor(0, milliseconds(60000), [&](const std::string& reason) { telling.set_value(reason); });
  ncclUniqueId id;
  ncclGetUniqueId(&id);
  auto peer = std::async(std::launch::async, [&] { return NcclHandle::open(monitor, id, 1, 2); });
  const auto handle = NcclHandle::open(monitor, id, 0, 2);
  const auto idle = peer.get();  // never comes to the split
  auto failing = std::async(std::launch::async, [&] {
    std::this_thread::sleep_for(milliseconds(20));
    monitor.fail_all("a test ends it");
  });
  try {
    handle->split(0, 0);
    FAIL() << "one rank alone has split";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("a test ends it"));
  }
  failing.get();
  EXPECT_EQ(telling.get_future().get(), "a test ends it");
}

TEST(NcclOfThreads, ACollectiveThatOneRankDoesNotEnterIsAbortedAndNamed) {
  run_thread_ranks(2, [](Communicator& host) {
    const CudaStream compute(0);
    const auto nccl = make_nccl_communicator(host, compute, {.limit = milliseconds(500)});
    if (nccl->rank() == 0) {
      std::vector<float> data(1000, 1);
      try {
        nccl->all_reduce(std::span(data));
        ADD_FAILURE() << "one rank alone has reduced";
      } catch (const Error& error) {
        EXPECT_THAT(error.what(), HasSubstr("all_reduce (sum) of 1000 f32 among ranks 0, 1"));
      }
      EXPECT_THROW(nccl->barrier(), Error);
    }
    host.barrier();
  });
}

}  // namespace
}  // namespace kvloom
