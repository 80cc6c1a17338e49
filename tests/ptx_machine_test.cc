// The machine that carries out kernels' PTX where there is no GPU (support/ptx): what it computes, and that it ends at
// what compute-sanitizer would report.
#include "tests/support/ptx/machine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "tests/support/random.h"
#include "tests/support/temporary_folder.h"

namespace kvloom::ptx {
namespace {

// A kernel of one pointer, with registers of all kinds and 256 bytes of shared memory.
Kernel kernel_of(const std::string& body) {
  const TemporaryFolder folder;
  const auto path = folder / "kernel.ptx";
  std::ofstream(path) << ".version 9.0\n.target sm_90a\n.address_size 64\n.visible .entry tested(\n"
                      << "\t.param .u64 tested_param_0\n)\n.maxntid 64, 1, 1\n{\n"
                      << "\t.reg .pred \t%p<9>;\n\t.reg .b16 %rs<9>;\n\t.reg .f32 %f<9>;\n\t.reg .b32 %r<19>;\n"
                      << "\t.reg .b64 %rd<9>;\n\t.shared .align 16 .b8 memory[256];\n"
                      << "\tld.param.u64 %rd1, [tested_param_0];\n\tmov.u32 %r1, %tid.x;\n"
                      << body << "\tret;\n}\n";
  return read_program({path}).at("tested");
}

template <typename T>
void run(const std::string& body, std::vector<T>& data, int threads, std::int64_t blocks = 1) {
  T* pointer = data.data();
  Launch launch{blocks, threads, 0, std::vector<std::byte>(sizeof(pointer))};
  std::memcpy(launch.parameters.data(), &pointer, sizeof(pointer));
  run_kernel(kernel_of(body), launch);
}

void expect_stop(const std::string& body, int threads, const std::string& message) {
  std::vector<float> data(64);
  EXPECT_DEATH(run(body, data, threads), message) << body;
}

// Each thread's place in memory, in bytes.
const std::string kPlaces = "\tshl.b32 %r2, %r1, 2;\n\tmov.u32 %r3, memory;\n\tadd.s32 %r4, %r3, %r2;\n";

TEST(PtxMachine, ComputesWhatTheKernelSays) {
  test::Random random;
  std::vector<float> data = random.normals(40, 3);
  std::vector<float> expected = data;
  for (std::size_t i = 0; i < 37; ++i) expected[i] = std::fma(data[i], -1.5f, static_cast<float>(i % 5));
  run("\tsetp.ge.u32 %p1, %r1, 37;\n\t@%p1 bra $L_end;\n\tmul.wide.u32 %rd2, %r1, 4;\n\tadd.s64 %rd3, %rd1, %rd2;\n"
      "\tld.global.f32 %f1, [%rd3];\n\trem.u32 %r5, %r1, 5;\n\tcvt.rn.f32.u32 %f2, %r5;\n"
      "\tfma.rn.f32 %f3, %f1, 0fBFC00000, %f2;\n\tst.global.f32 [%rd3], %f3;\n$L_end:\n",
      data, 64);
  EXPECT_EQ(data, expected);
}

TEST(PtxMachine, LanesThatWentDifferentWaysMeetAgain) {
  // Each lane counts down from its number; then the warp counts those with an odd one.
  std::vector<std::uint32_t> data(32);
  run("\tmov.u32 %r5, %r1;\n\tmov.u32 %r6, 0;\n$L_loop:\n\tsetp.eq.s32 %p1, %r5, 0;\n\t@%p1 bra $L_done;\n"
      "\tsub.s32 %r5, %r5, 1;\n\txor.b32 %r6, %r6, 1;\n\tbra.uni $L_loop;\n$L_done:\n\tsetp.ne.s32 %p2, %r6, 0;\n"
      "\tvote.sync.ballot.b32 %r7, %p2, -1;\n\tmul.wide.u32 %rd2, %r1, 4;\n\tadd.s64 %rd3, %rd1, %rd2;\n"
      "\tst.global.u32 [%rd3], %r7;\n",
      data, 32);
  EXPECT_EQ(data, std::vector<std::uint32_t>(32, 0xaaaaaaaau));
}

TEST(PtxMachine, ABarrierLetsThreadsReadWhatOthersWrote) {
  std::vector<std::uint32_t> data(64);
  run(kPlaces +
          "\tst.shared.u32 [%r4], %r1;\n\tbar.sync 0;\n\txor.b32 %r5, %r2, 252;\n\tadd.s32 %r6, %r3, %r5;\n"
          "\tld.shared.u32 %r7, [%r6];\n\tmul.wide.u32 %rd2, %r1, 4;\n\tadd.s64 %rd3, %rd1, %rd2;\n"
          "\tst.global.u32 [%rd3], %r7;\n",
      data, 64);
  for (std::uint32_t i = 0; i < 64; ++i) EXPECT_EQ(data[i], 63 - i);
}

TEST(PtxMachine, EndsAtARace) {
  const std::string write = kPlaces + "\tst.shared.u32 [%r4], %r1;\n";
  const std::string read_mirrored = "\txor.b32 %r5, %r2, 252;\n\tadd.s32 %r6, %r3, %r5;\n\tld.shared.u32 %r7, [%r6];\n";
  expect_stop(write + read_mirrored, 64, "reads");
  // A warp's own barrier orders nothing between warps.
  expect_stop(write + "\tbar.warp.sync -1;\n" + read_mirrored, 64, "reads");
  expect_stop(kPlaces + "\tst.shared.u32 [%r3], %r1;\n", 32, "thread 1: writes what thread 0 writes");
  const std::string read_and_write =
      "\txor.b32 %r5, %r2, 124;\n\tadd.s32 %r6, %r3, %r5;\n\tld.shared.u32 %r7, [%r6];\n\tst.shared.u32 [%r4], %r7;\n";
  expect_stop(write + "\tbar.sync 0;\n" + read_and_write, 32, "writes what thread 31 reads");
}

TEST(PtxMachine, AWarpsBarrierOrdersItsLanes) {
  std::vector<float> data(1);
  run(kPlaces +
          "\tst.shared.u32 [%r4], %r1;\n\tbar.warp.sync -1;\n\txor.b32 %r5, %r2, 124;\n"
          "\tadd.s32 %r6, %r3, %r5;\n\tld.shared.u32 %r7, [%r6];\n\tbar.warp.sync -1;\n"
          "\tst.shared.u32 [%r4], %r7;\n",
      data, 64);
}

TEST(PtxMachine, AWarpsBarrierOrdersWhatSeveralLanesHaveRead) {
  std::vector<float> data(1);
  run(kPlaces +
          "\tst.shared.u32 [%r4], %r1;\n\tbar.sync 0;\n\tld.shared.u32 %r7, [%r3];\n\tbar.warp.sync -1;\n"
          "\tst.shared.u32 [%r4], %r7;\n",
      data, 32);
}

TEST(PtxMachine, EndsAtWrongAccesses) {
  expect_stop(kPlaces + "\tld.shared.u32 %r7, [%r4];\n", 32, "reads shared memory that nobody has written");
  expect_stop(kPlaces + "\tst.shared.u32 [%r4+2], %r1;\n", 32, "no multiple of 4");
  expect_stop(kPlaces + "\tst.shared.u32 [%r4+256], %r1;\n", 32, "bytes of 256");
  expect_stop(kPlaces + "\tst.shared.u32 [%r3+-4], %r1;\n", 1, "bytes of 256");
  expect_stop("\tld.global.v4.f32 {%f1, %f2, %f3, %f4}, [%rd1+4];\n", 32, "no multiple of 16");
}

TEST(PtxMachine, EndsWhereAWarpIsNotWhole) {
  expect_stop(
      "\tsetp.lt.u32 %p1, %r1, 7;\n\t@%p1 bra $L_out;\n\tshfl.sync.bfly.b32 %r5|%p2, %r1, 1, 31, -1;\n"
      "\tbar.sync 0;\n$L_out:\n\tshfl.sync.bfly.b32 %r5|%p2, %r1, 1, 31, -1;\n",
      32, "not all lanes of the warp come here");
  expect_stop("\tbra.uni $L_end;\n\tret;\n$L_end:\n\tsetp.eq.s32 %p1, %r1, -1;\n\t@%p1 bra $L_end;\n\t@%p1 ", 32,
              "goes on after the kernel's end");
}

TEST(PtxMachine, CopiesThatNobodyWaitedForMayNotHaveBeenDone) {
  std::vector<std::uint32_t> data(4 + 64 * 4, 7);
  const std::string copy =
      "\tmov.u32 %r3, memory;\n\tcp.async.cg.shared.global [%r3], [%rd1], 16, 16;\n"
      "\tcp.async.commit_group;\n";
  const std::string leave =
      "\tld.shared.u32 %r7, [%r3];\n\tmov.u32 %r8, %ctaid.x;\n\tmul.wide.u32 %rd2, %r8, 16;\n"
      "\tadd.s64 %rd3, %rd1, %rd2;\n\tst.global.u32 [%rd3+16], %r7;\n";
  run(copy + leave, data, 1, 64);
  EXPECT_GT(std::ranges::count(data, 0xffffffffu), 0);
  data.assign(data.size(), 7);
  run(copy + "\tcp.async.wait_group 0;\n" + leave, data, 1, 64);
  EXPECT_EQ(std::ranges::count(data, 7u), std::ssize(data));
}

TEST(PtxMachine, NamesWhatItDoesNotKnow) {
  EXPECT_DEATH(kernel_of("\tatom.add.f32 %f1, [%rd1], %f2;\n"), "kernel.ptx:17: unknown instruction: atom.add.f32");
  EXPECT_DEATH(kernel_of("\tadd.s32 %r5, %r99, 1;\n"), "no such operand: %r99");
  EXPECT_DEATH(kernel_of("\tmul.rz.f32 %f1, %f2, %f3;\n"), "unknown instruction");
}

}  // namespace
}  // namespace kvloom::ptx
