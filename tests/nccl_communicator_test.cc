// The contract over NCCL (tests/support/nccl_ranks.h).
#include "parallel/nccl_communicator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <string>
#include <vector>

#include "kernels/error.h"
#include "tests/support/communicator_contract.h"
#include "tests/support/device_buffers.h"
#include "tests/support/nccl_ranks.h"

namespace kvloom {

using test::CommunicatorContract;

namespace {

using std::chrono::milliseconds;
using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;

test::NcclWorld* world() { return test::nccl_world(); }

void with_host_buffers(const test::Body& body) {
  Communicator& ranks = *world()->communicator;
  body(ranks, test::common_seed(ranks));
  ranks.barrier();
}

void with_device_buffers(const test::Body& body) {
  Communicator& ranks = *world()->communicator;
  test::DeviceBuffers on_device(ranks, world()->compute);
  body(on_device, test::common_seed(ranks));
  ranks.barrier();
}

INSTANTIATE_TEST_SUITE_P(Nccl, CommunicatorContract,
                         ::testing::Values(test::Ranks{"host_buffers", with_host_buffers, test::nccl_unavailable()},
                                           test::Ranks{"device_buffers", with_device_buffers,
                                                       test::nccl_unavailable()}),
                         test::name_of_ranks);

class NcclRanks : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!test::nccl_unavailable().empty()) GTEST_SKIP() << test::nccl_unavailable();
  }

  // One more world of the same ranks.
  static std::unique_ptr<Communicator> another(const NcclOptions& options) {
    return make_nccl_communicator(*world()->communicator, world()->compute, options);
  }
};

TEST_F(NcclRanks, ACollectiveThatOneRankDoesNotEnterIsAbortedAndNamed) {
  std::promise<std::string> telling;  // by the thread that watches
  std::future<std::string> told = telling.get_future();
  const auto short_lived = another(
      {.limit = milliseconds(5000), .on_failure = [&](const std::string& reason) { telling.set_value(reason); }});
  if (short_lived->rank() == 0) {
    std::vector<float> data(1000, 1);
    try {
      short_lived->all_reduce(std::span(data));
      FAIL() << "one rank alone has reduced";
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), AllOf(HasSubstr("all_reduce (sum) of 1000 f32 among ranks 0, 1"),
                                      AnyOf(HasSubstr("stuck for"), HasSubstr("did not come within"))));
    }
    EXPECT_THROW(short_lived->barrier(), Error);
    const bool was_told = told.wait_for(std::chrono::seconds(30)) == std::future_status::ready;
    EXPECT_TRUE(was_told);
    EXPECT_THAT(was_told ? told.get() : "", HasSubstr("all_reduce"));
  }
  world()->communicator->barrier();
}

TEST_F(NcclRanks, AReceiveThatNobodySendsNamesPeerAndTag) {
  const auto short_lived = another({.limit = milliseconds(5000)});
  if (short_lived->rank() == 0) {
    std::vector<float> data(10);
    try {
      short_lived->receive(std::span(data), 1, 17);
      FAIL() << "received what nobody sent";
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), AllOf(HasSubstr("irecv of 10 f32 from rank 1 to rank 0, tag 17"),
                                      HasSubstr("nothing was sent within 5.0 s")));
    }
  }
  world()->communicator->barrier();
}

TEST_F(NcclRanks, SendsInARingOfAnySizeDoNotWaitForPostedReceives) {
  Communicator& ranks = *world()->communicator;
  const int next = (ranks.rank() + 1) % ranks.size();
  const int previous = (ranks.rank() + ranks.size() - 1) % ranks.size();
  constexpr std::size_t kCount = 8U << 20;  // beyond what NCCL keeps on the way
  std::vector<float> given(kCount, static_cast<float>(ranks.rank())), taken(kCount);
  ranks.send(std::span(given), next, 1);
  ranks.receive(std::span(taken), previous, 1);
  EXPECT_EQ(taken, std::vector<float>(kCount, static_cast<float>(previous)));
}

}  // namespace
}  // namespace kvloom

int main(int argc, char** argv) { return kvloom::test::nccl_main(argc, argv); }
