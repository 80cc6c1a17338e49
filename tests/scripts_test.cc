// The scripts of launch/: they explain themselves, and quickstart keeps its word about paths, failures and changed
// text. What takes long is replaced by scripts that note how they were called.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "tests/support/process.h"
#include "tests/support/temporary_folder.h"

namespace kvloom {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

const fs::path kLaunch = fs::path(KVLOOM_SOURCE_DIR) / "launch";

TEST(Scripts, ExplainThemselvesAndRefuseWhatTheyDoNotKnow) {
  const TemporaryFolder folder;
  test::ProcessOptions options;
  options.folder = folder.path();
  for (const char* name : {"build", "test", "quickstart"}) {
    const test::ProcessResult help = test::run_process({(kLaunch / name).string(), "--help"}, options);
    EXPECT_EQ(help.status, 0) << name << help.error;
    EXPECT_THAT(help.output, ::testing::StartsWith("usage: launch/" + std::string(name)));
    const test::ProcessResult unknown = test::run_process({(kLaunch / name).string(), "--colour"}, options);
    EXPECT_EQ(unknown.status, 2) << name;
    EXPECT_EQ(unknown.error_lines(), 1) << unknown.error;
    EXPECT_THAT(unknown.error, HasSubstr("--colour"));
  }
}

// A source tree with quickstart alone; `text.txt` lies in a folder beside it.
class Quickstart : public ::testing::Test {
 protected:
  Quickstart() {
    for (const char* sub : {"tree/launch", "tree/build/release", "bin", "elsewhere"}) {
      fs::create_directories(folder_ / sub);
    }
    fs::copy(kLaunch / "quickstart", folder_ / "tree/launch/quickstart");
    script("tree/launch/build", "");
    script("bin/mpirun", "shift 2; exec \"$@\"");
    script("tree/build/release/kvloom",
           "echo \"$@\" >> \"$CALLS\"\n"
           "[ \"$1\" != \"${FAILING:-}\" ] || { echo 'it failed' >&2; exit 1; }\n"
           "case $1 in\n"
           "  tokenize) while [ $# -gt 0 ]; do [ \"$1\" != --output ] || : > \"$2\"; shift; done ;;\n"
           "  eval) printf '{\\n  \"perplexity\": 12.5,\\n  \"step\": 4\\n}\\n' ;;\n"
           "  generate) while [ $# -gt 0 ]; do [ \"$1\" != --seed ] || seed=$2; shift; done\n"
           "  prefill=(0 99.5 3 1000.0 20 100) decode=(0 4 50.2 7 6 9)\n"
           "  printf '{\\n  \"kv_bytes_per_token\": 768,\\n  \"prefill_tokens_per_second\": %s,\\n"
           "  \"decode_tokens_per_second\": %s\\n}\\n' ${prefill[seed]} ${decode[seed]} ;;\n"
           "esac");
    folder_.write("elsewhere/text.txt", "a text\n");
  }

  void script(const std::string& name, const std::string& body) {
    folder_.write(name, "#!/bin/bash\n" + body + "\n");
    fs::permissions(folder_ / name, fs::perms::owner_all);
  }

  // Started by a relative path from the folder of the text.
  test::ProcessResult run(const std::string& environment, const std::string& arguments) {
    test::ProcessOptions options;
    options.folder = folder_ / "elsewhere";
    const std::string command = "PATH=" + (folder_ / "bin").string() + ":$PATH CALLS=" + calls().string() + " " +
                                environment + " ../tree/launch/quickstart " + arguments;
    return test::run_process({"/bin/sh", "-c", command}, options);
  }

  fs::path calls() const { return folder_ / "calls.txt"; }

  std::int64_t calls_of(const std::string& verb) const {
    std::ifstream file(calls());
    std::int64_t count = 0;
    for (std::string line; std::getline(file, line);) count += line.starts_with(verb + " ") ? 1 : 0;
    return count;
  }

  TemporaryFolder folder_;
};

TEST_F(Quickstart, TakesPathsFromWhereItWasAskedAndComparesBothMaps) {
  const test::ProcessResult result = run("", "--data text.txt --steps 4");
  EXPECT_EQ(result.status, 0) << result.error;
  EXPECT_THAT(result.output, ::testing::ContainsRegex("sandwich-middle:3 +12.50 +768 +1000 +50\n"))
      << "the best of all tries";
  EXPECT_EQ(calls_of("train"), 2);
  EXPECT_GT(fs::file_size(folder_ / "tree/out/quickstart/prompt.txt"), 200) << "a prompt to measure speed with";
  const test::ProcessResult missing = run("", "--data none.txt");
  EXPECT_EQ(missing.status, 2);
  EXPECT_THAT(missing.error, HasSubstr("there is no 'none.txt'"));
}

TEST_F(Quickstart, FailsWhenAnyOfItsStepsFails) {
  for (const std::string verb : {"tokenize", "train", "eval", "generate"}) {
    fs::remove_all(folder_ / "tree/out");
    const test::ProcessResult result = run("FAILING=" + verb, "--data text.txt");
    EXPECT_EQ(result.status, 1) << verb;
    EXPECT_THAT(result.error, HasSubstr("it failed")) << verb;
    EXPECT_THAT(result.output, ::testing::Not(HasSubstr("0.00"))) << verb;
  }
}

TEST_F(Quickstart, TokenizesAgainWhatWasChangedSinceAndNothingElse) {
  for (int i = 0; i < 2; ++i) EXPECT_EQ(run("", "--data text.txt").status, 0);
  EXPECT_EQ(calls_of("tokenize"), 1);
  folder_.write("elsewhere/text.txt", "another text, longer\n");
  EXPECT_EQ(run("", "--data text.txt").status, 0);
  EXPECT_EQ(calls_of("tokenize"), 2);
}

// A bundle whose programs are scripts.
class GpuCheck : public ::testing::Test {
 protected:
  GpuCheck() {
    fs::copy(kLaunch / "gpu_check", folder_ / "gpu_check");
    script("start", "[ -z \"${NO_CUDNN:-}\" ] || echo 'libcudnn.so.9: not found; a word'; exit ${NO_CUDA:-0}");
    for (const char* name : {"device", "matmul", "kernels", "attention"}) {
      script("cuda_" + std::string(name) + "_test", "echo '[       OK ] It.Is (1 ms)'");
    }
    script("cuda_skipping_test",
           "echo 'test.cc:3: Skipped'; echo 'cuDNN cannot be opened'; echo; echo '[  SKIPPED ] Dnn.Is (0 ms)'\n"
           "echo '[       OK ] Own.Is (1 ms)'");
    script("nccl_ring_test", "echo \"[       OK ] Ring.$1 (1 ms)\"");
    script("cuda_bench", "echo 'copy 3000 GB/s'");
    script("kvloom", "echo \"kvloom $*\"; [ \"$2\" != decode ] || exit 1");
  }

  void script(const std::string& name, const std::string& body) {
    folder_.write(name, "#!/bin/sh\n" + body + "\n");
    fs::permissions(folder_ / name, fs::perms::owner_all);
  }

  test::ProcessResult run(const std::string& arguments) {
    test::ProcessOptions options;
    options.folder = folder_.path();
    return test::run_process({"/bin/sh", "-c", "PATH=" + folder_.path().string() + ":$PATH; " + arguments}, options);
  }

  TemporaryFolder folder_;
};

// A test of three cases, whose second one breaks the GPU's context and with it, of the same process, the third.
constexpr const char* kBreaking =
    "case ${1:-} in\n"
    "  --gtest_list_tests) printf 'Ops.\\n  First\\n  Second\\n  Third\\n' ;;\n"
    "  *Third) echo '[       OK ] Ops.Third (1 ms)' ;;\n"
    "  *) [ $# -gt 0 ] || echo '[       OK ] Ops.First (1 ms)'\n"
    "     echo 'ops.cc:7: Failure'; echo 'second: an illegal memory access was encountered'\n"
    "     [ -z \"${DIES:-}\" ] || kill -ABRT $$\n"
    "     echo '[  FAILED  ] Ops.Second (1 ms)'\n"
    "     [ $# -gt 0 ] || echo '[  FAILED  ] Ops.Third (1 ms)'; exit 1 ;;\n"
    "esac";

TEST_F(GpuCheck, ShowsWhatPassedFailedAndWasSkippedAndWhy) {
  const test::ProcessResult whole = run("./gpu_check --tests");
  EXPECT_EQ(whole.status, 0) << whole.output;
  EXPECT_THAT(whole.output, ::testing::ContainsRegex("cuda_skipping_test +1 +0 +1 +[0-9]+  passed\n +1 cuDNN cannot"));
  EXPECT_THAT(whole.output, ::testing::Not(HasSubstr("Ring")));
  script("cuda_breaking_test", kBreaking);
  for (const std::string how : {"", "DIES=1 "}) {
    const test::ProcessResult result = run(how + "./gpu_check --tests --log all.log");
    EXPECT_EQ(result.status, 1);
    const auto expect_row = [&](const std::string& row) {
      EXPECT_THAT(result.output, ::testing::ContainsRegex(row)) << result.error;
    };
    expect_row("cuda_device_test +1 +0 +0 +[0-9]+  passed");
    expect_row("cuda_breaking_test +1 +[02] +0 +[0-9]+  FAILED \\([0-9]+\\)\n +ops.cc:7: Failure");
    expect_row("  Ops.Second +0 +[01] +0 +[0-9]+  FAILED");
    expect_row("  Ops.Third +1 +0 +0 +[0-9]+  passed");
    EXPECT_THAT(result.output, ::testing::Not(HasSubstr("Ops.First"))) << "it had passed";
    EXPECT_THAT(test::content_of(folder_ / "all.log"), HasSubstr("=== cuda_breaking_test: exit status"));
  }
}

TEST_F(GpuCheck, EndsWhatHangs) {
  script("timeout", "shift 3; case $1 in *cuda_kernels_test) exit 124 ;; esac; exec \"$@\"");
  const test::ProcessResult result = run("./gpu_check --tests");
  EXPECT_EQ(result.status, 1);
  EXPECT_THAT(result.output, ::testing::ContainsRegex("cuda_kernels_test +0 +0 +0 +[0-9]+  FAILED \\(out of time\\)"));
  EXPECT_THAT(result.output, ::testing::ContainsRegex("cuda_attention_test +1 "));
}

TEST_F(GpuCheck, AGpuOnWhichNothingRanIsAFailure) {
  for (const char* name : {"device", "matmul", "kernels", "attention", "skipping"}) {
    script("cuda_" + std::string(name) + "_test",
           "echo 'a.cc:3: Skipped'; echo 'no GPU: the driver is too old'; echo '[  SKIPPED ] It.Is (0 ms)'");
  }
  EXPECT_EQ(run("./gpu_check --tests").status, 0) << "a machine that has none";
  script("nvidia-smi", "echo 'a GPU'");
  const test::ProcessResult result = run("./gpu_check --tests");
  EXPECT_EQ(result.status, 1);
  EXPECT_THAT(result.output, HasSubstr("no test ran on this machine's GPU"));
}

TEST_F(GpuCheck, RunsRanksAndBenchmarksAndSeesTheirFailure) {
  const test::ProcessResult ranks = run("./gpu_check --nccl");
  EXPECT_EQ(ranks.status, 0) << ranks.output;
  EXPECT_THAT(ranks.output, ::testing::ContainsRegex("nccl_ring_test, 4 +1 +0 +0"));
  const test::ProcessResult bench = run("./gpu_check --bench");
  EXPECT_EQ(bench.status, 1);
  EXPECT_THAT(bench.output, HasSubstr("copy 3000 GB/s"));
  EXPECT_THAT(bench.output, HasSubstr("--attention cudnn"));
  EXPECT_THAT(bench.output, HasSubstr("FAILED (1) after at most 240 s: kvloom bench"));
  EXPECT_THAT(test::content_of(folder_ / "gpu_check.log"), HasSubstr("kvloom bench train --device cuda"));
}

TEST_F(GpuCheck, WithoutCudnnLeavesItsRoundOutAndSaysSo) {
  const test::ProcessResult bench = run("NO_CUDNN=1 ./gpu_check --bench");
  EXPECT_THAT(bench.output, HasSubstr("libcudnn.so.9: not found"));
  EXPECT_THAT(bench.output, HasSubstr("--attention kvloom"));
  EXPECT_THAT(bench.output, ::testing::Not(HasSubstr("--attention cudnn")));
  EXPECT_THAT(bench.output, HasSubstr("with attention by cuDNN: left out, there is no cuDNN"));
  EXPECT_THAT(run("./gpu_check --bench").output, ::testing::Not(HasSubstr("left out")));
}

TEST_F(GpuCheck, RefusesWhatItDoesNotKnowAndAGpuWithoutCuda) {
  EXPECT_EQ(run("./gpu_check --colour").status, 2);
  script("nvidia-smi", "echo 'a GPU'");
  EXPECT_EQ(run("NO_CUDA=1 ./gpu_check --tests").status, 2);
}

}  // namespace
}  // namespace kvloom
