// Checkpoints side by side: a save replaces, leaves out or loses nothing but itself; which is newest, which is best,
// which go.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>

#include "core/file.h"
#include "tests/support/checkpoint_fixture.h"

namespace kvloom {
namespace {

namespace fs = std::filesystem;
using test::message_of;
using test::WholeTensor;
using ::testing::AllOf;
using ::testing::HasSubstr;

class CheckpointFolder : public test::CheckpointTest {};

TEST_F(CheckpointFolder, SavingTheSameStepAgainReplacesItAndLeavesNothingBeside) {
  save(step(5), {random_tensor("old", {3}, DType::kF32)}, 3);
  const std::vector<WholeTensor> tensors = {random_tensor("new", {8, 2}, DType::kF32)};
  save(step(5), tensors, 1);
  expect_equal(step(5), tensors);
  EXPECT_EQ(files_in(step(5)).size(), 2u);
  EXPECT_THAT(names_beside(), ::testing::ElementsAre("step-00000005"));
}

TEST_F(CheckpointFolder, WhateverElseStandsInItsPlaceIsSetAsideWhole) {
  const std::vector<WholeTensor> tensors = random_tensors(3);
  folder_.write("step-00000005/thesis.tex", "ten years");
  save(step(5), tensors, 1);
  EXPECT_EQ(read_bytes(folder_ / "step-00000005.set-aside/thesis.tex"), "ten years");
  expect_equal(step(5), tensors);
  // A checkpoint with a file of someone's in it.
  folder_.write("step-00000005/notes.txt", "a good one");
  save(step(5), random_tensors(2), 1);
  EXPECT_EQ(read_bytes(folder_ / "step-00000005.set-aside-2/notes.txt"), "a good one");
  expect_equal(folder_ / "step-00000005.set-aside-2", tensors);
  // Names like those of a save that are folders and links.
  fs::create_directories(folder_ / "step-00000006/shard-0-0.h5/mine");
  fs::create_directory_symlink(folder_ / "step-00000005", folder_ / "step-00000007");
  folder_.write("step-00000008", "a file");
  for (const std::uint64_t number : {6u, 7u, 8u}) save(step(number), tensors, 1);
  EXPECT_TRUE(fs::exists(folder_ / "step-00000006.set-aside/shard-0-0.h5/mine"));
  EXPECT_TRUE(fs::is_symlink(folder_ / "step-00000007.set-aside"));
  EXPECT_EQ(read_bytes(folder_ / "step-00000008.set-aside"), "a file");
}

TEST_F(CheckpointFolder, AnUnfinishedOneOfOurFilesAloneIsReplaced) {
  const std::vector<WholeTensor> tensors = random_tensors(3);
  save(step(5), tensors, 2);
  fs::remove(step(5) / "manifest.pb");
  save(step(5), tensors, 1);
  expect_equal(step(5), tensors);
  flip_bit(step(5) / "manifest.pb", 3, 1);
  save(step(5), tensors, 1);
  expect_equal(step(5), tensors);
  EXPECT_THAT(names_beside(), ::testing::ElementsAre("step-00000005"));
}

TEST_F(CheckpointFolder, PruningLeavesWhatIsNoCheckpoint) {
  const std::vector<WholeTensor> tensors = random_tensors(2);
  folder_.write("step-00000005/thesis.tex", "ten years");
  for (const std::uint64_t number : {6u, 7u, 8u}) save(step(number), tensors, 1);
  fs::remove(step(6) / "manifest.pb");
  prune_checkpoints(folder_.path(), 1);
  EXPECT_THAT(names_beside(), ::testing::ElementsAre("step-00000005", "step-00000008"));
}

TEST_F(CheckpointFolder, AnInterruptedSaveIsIgnoredAndClearedByWhoWritesThemAll) {
  const std::vector<WholeTensor> tensors = random_tensors(3);
  save(step(10), tensors, 1);
  folder_.write(".step-00000020.partial/shard-0-0.h5", "half");
  folder_.write(".other.partial/keep", "not ours");
  EXPECT_EQ(latest_checkpoint(folder_.path()).place->step, 10u);
  // Another may be writing it.
  save(step(30), tensors, 1);
  EXPECT_EQ(read_bytes(folder_ / ".step-00000020.partial/shard-0-0.h5"), "half");
  clear_interrupted_saves(folder_.path());
  EXPECT_THAT(names_beside(), ::testing::ElementsAre(".other.partial", "step-00000010", "step-00000030"));
}

TEST_F(CheckpointFolder, AProcessKilledBeforeTheRenameLosesOnlyItsOwnSave) {
  const std::vector<WholeTensor> tensors = random_tensors(3);
  save(step(10), tensors, 1);
  for (const std::uint64_t number : {10u, 20u}) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      const float one = 1;
      CheckpointWriter writer(step(number));
      writer.write_part(0, std::vector<TensorSlice>{{"a", {1}, DType::kF32, {0}, {1}, &one}});
      ::raise(SIGKILL);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFSIGNALED(status));
    EXPECT_TRUE(fs::exists(partial_folder_of(step(number)) / "shard-0-0.h5"));
    EXPECT_EQ(latest_checkpoint(folder_.path()).place->step, 10u);
    expect_equal(step(10), tensors);
  }
  for (const std::uint64_t number : {10u, 20u}) save(step(number), tensors, 2);
  EXPECT_THAT(names_beside(), ::testing::ElementsAre("step-00000010", "step-00000020"));
}

TEST_F(CheckpointFolder, ACheckpointThatWasBeingReplacedComesBack) {
  const std::vector<WholeTensor> tensors = random_tensors(3);
  save(step(10), tensors, 1);
  fs::rename(step(10), replaced_folder_of(step(10)));
  clear_interrupted_saves(folder_.path());
  expect_equal(step(10), tensors);
  fs::copy(step(10), replaced_folder_of(step(10)));
  clear_interrupted_saves(folder_.path());
  EXPECT_THAT(names_beside(), ::testing::ElementsAre("step-00000010"));
  fs::rename(step(10), replaced_folder_of(step(10)));
  save(step(10), tensors, 2);
  EXPECT_THAT(names_beside(), ::testing::ElementsAre("step-00000010"));
}

TEST_F(CheckpointFolder, AWriterThatIsNotCommittedLeavesNothing) {
  const float one = 1;
  {
    CheckpointWriter writer(folder_.path() / "runs" / "step-00000001");
    writer.write_part(0, std::vector<TensorSlice>{{"a", {1}, DType::kF32, {0}, {1}, &one}});
    EXPECT_TRUE(fs::exists(writer.partial_folder() / "shard-0-0.h5"));
  }
  EXPECT_TRUE(fs::is_empty(folder_.path() / "runs"));
}

// Runs `action` in a child whose files may not grow beyond `bytes`, which fails writes as a full disk does.
void with_file_limit(rlim_t bytes, const std::function<void()>& action) {
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{bytes, bytes};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    action();
    ::_exit(::testing::Test::HasFailure() ? 1 : 0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "child ended with status " << status;
}

TEST_F(CheckpointFolder, AFullDiskNamesTheFileAndLeavesTheLastCheckpointAlone) {
  const std::vector<WholeTensor> tensors = {random_tensor("a", {10000}, DType::kF32)};
  save(step(1), tensors, 1);
  for (const rlim_t limit : {rlim_t{0}, rlim_t{4096}, rlim_t{40000}}) {
    with_file_limit(limit, [&] {
      for (const std::uint64_t number : {1u, 2u}) {
        const std::string message = message_of([&] { save(step(number), tensors, 1); });
        EXPECT_THAT(message,
                    AllOf(HasSubstr("run: cannot write"), HasSubstr("shard-0-0.h5"), HasSubstr("bytes wanted")));
      }
    });
    EXPECT_THAT(names_beside(), ::testing::ElementsAre("step-00000001"));
    expect_equal(step(1), tensors);
  }
}

TEST_F(CheckpointFolder, AFullDiskAtTheManifestLeavesTheLastCheckpointAlone) {
  std::vector<WholeTensor> tensors;
  for (int i = 0; i < 300; ++i) tensors.push_back(random_tensor("tensor-" + std::to_string(i), {1}, DType::kU8));
  save(step(1), tensors, 1, 1);  // a file a tensor, so the manifest is the largest
  with_file_limit(16384, [&] {
    EXPECT_THAT(message_of([&] { save(step(2), tensors, 1, 1); }), AllOf(HasSubstr("run: "), HasSubstr("manifest.pb")));
  });
  EXPECT_THAT(names_beside(), ::testing::ElementsAre("step-00000001"));
}

TEST_F(CheckpointFolder, AnUnusablePlaceIsNamed) {
  const fs::path file = folder_.write("file", "a file, no folder");
  EXPECT_THAT(message_of([&] { CheckpointWriter writer(file / "step-00000001"); }), HasSubstr(file.string()));
  EXPECT_THAT(message_of([&] { CheckpointWriter writer("/proc/nowhere/step-00000001"); }), HasSubstr("/proc/nowhere"));
  EXPECT_THAT(message_of([&] { write_checkpoint_part(step(1), 0, std::vector<TensorSlice>{}); }), "nothing was thrown");
  const float one = 1;
  const std::vector<TensorSlice> slices = {{"a", {1}, DType::kF32, {0}, {1}, &one}};
  EXPECT_THAT(message_of([&] { write_checkpoint_part(step(1), 0, slices); }),
              AllOf(HasSubstr("run: cannot create"), HasSubstr("shard-0-0.h5")));
}

TEST_F(CheckpointFolder, TheLatestIsTheNewestWholeOne) {
  EXPECT_FALSE(latest_checkpoint(folder_ / "missing").place.has_value());
  const std::vector<WholeTensor> tensors = random_tensors(3);
  for (const std::uint64_t number : {9u, 10u, 100u, 123456789u}) save(step(number), tensors, 1);
  fs::create_directory(folder_ / "step-notastep");
  EXPECT_EQ(latest_checkpoint(folder_.path()).place->step, 123456789u);
  fs::resize_file(step(123456789) / "shard-0-0.h5", 10);
  fs::remove(step(100) / "manifest.pb");
  const LatestCheckpoint latest = latest_checkpoint(folder_.path());
  EXPECT_EQ(latest.place->step, 10u);
  EXPECT_THAT(latest.passed_over,
              ::testing::ElementsAre(HasSubstr("step-123456789/shard-0-0.h5"), HasSubstr("step-00000100")));
}

TEST_F(CheckpointFolder, PruningKeepsTheNewestWholeOnesAndTheBest) {
  const std::vector<WholeTensor> tensors = random_tensors(2);
  for (const std::uint64_t number : {1u, 2u, 3u, 4u, 5u}) save(step(number), tensors, 1);
  EXPECT_FALSE(best_checkpoint(folder_.path()).has_value());
  mark_best_checkpoint(folder_.path(), 2);
  EXPECT_EQ(best_checkpoint(folder_.path())->folder, step(2));
  prune_checkpoints(folder_.path(), 0);
  EXPECT_EQ(list_checkpoints(folder_.path()).size(), 5u);
  fs::remove(step(4) / "manifest.pb");
  prune_checkpoints(folder_.path(), 2);
  EXPECT_THAT(names_beside(),
              ::testing::ElementsAre("best", "step-00000002", "step-00000003", "step-00000004", "step-00000005"));
  mark_best_checkpoint(folder_.path(), 5);
  prune_checkpoints(folder_.path(), 1);
  EXPECT_THAT(names_beside(), ::testing::ElementsAre("best", "step-00000005"));
  unmark_best_checkpoint(folder_.path());
  unmark_best_checkpoint(folder_.path());
  EXPECT_THAT(names_beside(), ::testing::ElementsAre("step-00000005"));
  folder_.write("best", "../../etc");
  EXPECT_THAT(message_of([&] { best_checkpoint(folder_.path()); }), HasSubstr("must hold the name"));
}

TEST_F(CheckpointFolder, OnlyAMarkIsTakenAwayAsOne) {
  const fs::path best = folder_ / "best";
  const auto expect_kept = [&](const char* reason) {
    EXPECT_THAT(message_of([&] { check_best_mark(folder_.path()); }), AllOf(HasSubstr("/best"), HasSubstr(reason)));
    EXPECT_THAT(message_of([&] { unmark_best_checkpoint(folder_.path()); }), HasSubstr("/best"));
    EXPECT_TRUE(fs::exists(fs::symlink_status(best))) << reason;
  };
  check_best_mark(folder_.path());
  for (const std::string& text : {std::string("my notes"), std::string(100, 'x'), std::string()}) {
    folder_.write("best", text);
    expect_kept(text.size() > 64 ? "100 bytes" : "must hold the name");
    EXPECT_EQ(read_file(best, 1000), text);
  }
  fs::remove(best);
  fs::create_directory(best);
  expect_kept("in the way");
  fs::remove(best);
  fs::create_symlink("nothing", best);
  expect_kept("in the way");
  fs::remove(best);
  mark_best_checkpoint(folder_.path(), 7);
  unmark_best_checkpoint(folder_.path());
  EXPECT_FALSE(fs::exists(best));
}

}  // namespace
}  // namespace kvloom
