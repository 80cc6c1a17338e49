#include <gmock/gmock.h>
#include <google/protobuf/stubs/logging.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <functional>
#include <thread>

#include "core/checkpoint_folder.h"
#include "core/checkpoint_manifest.h"
#include "core/checkpoint_reader.h"
#include "core/checkpoint_writer.h"
#include "core/file.h"
#include "kernels/error.h"
#include "tests/support/random.h"
#include "tests/support/temporary_folder.h"

namespace kvloom {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr std::array kDTypes = {DType::kF32, DType::kBF16, DType::kF16, DType::kF64, DType::kI32,
                                DType::kI64, DType::kU8,   DType::kU16, DType::kU32};

struct WholeTensor {
  std::string name;
  Shape shape;
  DType dtype;
  std::vector<std::byte> bytes;
};

// The oracle: element by element, with no HDF5 and no rectangles but this one.
std::vector<std::byte> cut_out(const WholeTensor& tensor, const Rectangle& rectangle) {
  const std::size_t size = size_of(tensor.dtype);
  std::vector<std::byte> out;
  Shape index(tensor.shape.size(), 0);
  for (std::int64_t n = 0; n < element_count(rectangle.shape); ++n) {
    std::int64_t rest = n;
    std::int64_t position = 0;
    for (std::size_t axis = index.size(); axis-- > 0;) {
      index[axis] = rectangle.offset[axis] + rest % rectangle.shape[axis];
      rest /= rectangle.shape[axis];
    }
    for (std::size_t axis = 0; axis < index.size(); ++axis) position = position * tensor.shape[axis] + index[axis];
    const std::byte* element = tensor.bytes.data() + static_cast<std::size_t>(position) * size;
    out.insert(out.end(), element, element + size);
  }
  return out;
}

std::string message_of(const auto& action) {
  try {
    action();
  } catch (const InputError& error) {
    return std::string("input: ") + error.what();
  } catch (const Error& error) {
    return std::string("run: ") + error.what();
  }
  return "nothing was thrown";
}

class Checkpoint : public ::testing::Test {
 protected:
  std::int64_t draw(std::int64_t least, std::int64_t most) { return random_.integer(least, most); }

  WholeTensor random_tensor(const std::string& name, Shape shape, DType dtype) {
    std::vector<std::byte> bytes(static_cast<std::size_t>(element_count(shape)) * size_of(dtype));
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(draw(0, 255));
    return {name, std::move(shape), dtype, std::move(bytes)};
  }

  std::vector<WholeTensor> random_tensors(int count) {
    std::vector<WholeTensor> tensors;
    for (int i = 0; i < count; ++i) {
      Shape shape(static_cast<std::size_t>(draw(0, 3)));
      for (std::int64_t& size : shape) size = draw(1, 9);
      const std::string prefix = draw(0, 1) == 0 ? "model.layers." : "optimizer/momentum/model.layers.";
      tensors.push_back(random_tensor(prefix + std::to_string(i) + ".weight", std::move(shape),
                                      kDTypes[static_cast<std::size_t>(draw(0, kDTypes.size() - 1))]));
    }
    return tensors;
  }

  // Cuts [0, size) into at most `pieces` runs, some of them empty.
  std::vector<std::pair<std::int64_t, std::int64_t>> cut_axis(std::int64_t size, int pieces) {
    std::vector<std::int64_t> bounds = {0, size};
    for (int i = 1; i < pieces; ++i) bounds.push_back(draw(0, size));
    std::sort(bounds.begin(), bounds.end());
    std::vector<std::pair<std::int64_t, std::int64_t>> runs;
    for (std::size_t i = 0; i + 1 < bounds.size(); ++i) runs.emplace_back(bounds[i], bounds[i + 1]);
    return runs;
  }

  // One slice a part, cut along a random axis; parts may get none.
  void deal(const WholeTensor& tensor, std::vector<std::vector<std::pair<WholeTensor, Rectangle>>>& parts) {
    const Shape origin(tensor.shape.size(), 0);
    if (tensor.shape.empty()) {
      parts[static_cast<std::size_t>(draw(0, static_cast<int>(parts.size()) - 1))].push_back({tensor, {origin, {}}});
      return;
    }
    const auto axis = static_cast<std::size_t>(draw(0, static_cast<int>(tensor.shape.size()) - 1));
    const auto runs = cut_axis(tensor.shape[axis], static_cast<int>(parts.size()));
    for (std::size_t part = 0; part < parts.size(); ++part) {
      Rectangle rectangle{origin, tensor.shape};
      rectangle.offset[axis] = runs[part].first;
      rectangle.shape[axis] = runs[part].second - runs[part].first;
      parts[part].push_back({tensor, rectangle});
    }
  }

  void save(const fs::path& folder, const std::vector<WholeTensor>& tensors, int parts,
            std::uint64_t largest_shard = kLargestShard) {
    std::vector<std::vector<std::pair<WholeTensor, Rectangle>>> dealt(static_cast<std::size_t>(parts));
    for (const WholeTensor& tensor : tensors) deal(tensor, dealt);
    CheckpointWriter writer(folder);
    std::vector<proto::ManifestPart> written;
    for (int part = 0; part < parts; ++part) {
      std::vector<std::vector<std::byte>> memory;
      std::vector<TensorSlice> slices;
      for (const auto& [tensor, rectangle] : dealt[static_cast<std::size_t>(part)]) {
        memory.push_back(cut_out(tensor, rectangle));
        slices.push_back(
            {tensor.name, tensor.shape, tensor.dtype, rectangle.offset, rectangle.shape, memory.back().data()});
      }
      written.push_back(write_checkpoint_part(folder, part, slices, largest_shard));
    }
    writer.commit(some_manifest(), written);
  }

  static proto::Manifest some_manifest() {
    proto::Manifest manifest;
    manifest.mutable_model()->set_layers(2);
    manifest.mutable_training()->set_step(7);
    manifest.set_tokenizer(std::string("\0\xff raw", 6));
    return manifest;
  }

  void expect_equal(const fs::path& folder, const std::vector<WholeTensor>& tensors) {
    CheckpointReader reader(folder);
    ASSERT_EQ(reader.manifest().tensors_size(), static_cast<int>(tensors.size()));
    for (const WholeTensor& tensor : tensors) {
      std::vector<std::byte> read(tensor.bytes.size());
      reader.read(tensor.name, tensor.dtype, read.data());
      EXPECT_EQ(read, tensor.bytes) << tensor.name << " " << to_string(tensor.shape);
    }
  }

  fs::path step(std::uint64_t number) const { return folder_.path() / checkpoint_name(number); }

  void flip_bit(const fs::path& file, std::size_t byte, int bit) {
    std::string bytes = read_bytes(file);
    bytes.at(byte) = static_cast<char>(bytes.at(byte) ^ (1 << bit));
    overwrite(file, bytes);
  }
  static void overwrite(const fs::path& file, std::string_view bytes) {
    std::ofstream(file, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }
  static std::vector<fs::path> files_in(const fs::path& folder) {
    std::vector<fs::path> files;
    for (const auto& entry : fs::directory_iterator(folder)) files.push_back(entry.path());
    std::sort(files.begin(), files.end());
    return files;
  }
  std::vector<std::string> names_beside() const {
    std::vector<std::string> names;
    for (const fs::path& path : files_in(folder_.path())) names.push_back(path.filename().string());
    return names;
  }

  test::Random random_;
  TemporaryFolder folder_;
};

TEST_F(Checkpoint, TensorsOfEveryDTypeAndShapeComeBackBitForBit) {
  std::vector<WholeTensor> tensors;
  for (const DType dtype : kDTypes) {
    for (const Shape& shape : {Shape{}, Shape{1}, Shape{5, 3}, Shape{2, 3, 4, 2}}) {
      tensors.push_back(random_tensor(std::string(name_of(dtype)) + "/" + to_string(shape), shape, dtype));
    }
  }
  tensors.push_back(random_tensor("empty", {4, 0}, DType::kF32));
  save(step(1), tensors, 1);
  expect_equal(step(1), tensors);
  const CheckpointReader reader(step(1));
  EXPECT_EQ(reader.manifest().training().step(), 7u);
  EXPECT_EQ(reader.manifest().tokenizer(), std::string("\0\xff raw", 6));
}

TEST_F(Checkpoint, AnyCutIsReadUnderAnyOtherCut) {
  for (int round = 0; round < 12; ++round) {
    const std::vector<WholeTensor> tensors = random_tensors(6);
    save(step(1), tensors, 1 + round % 4, static_cast<std::uint64_t>(draw(1, 400)));
    expect_equal(step(1), tensors);
    CheckpointReader reader(step(1));
    for (const WholeTensor& tensor : tensors) {
      Rectangle wanted{tensor.shape, tensor.shape};
      for (std::size_t axis = 0; axis < tensor.shape.size(); ++axis) {
        wanted.offset[axis] = draw(0, tensor.shape[axis]);
        wanted.shape[axis] = draw(0, tensor.shape[axis] - wanted.offset[axis]);
      }
      const std::vector<std::byte> expected = cut_out(tensor, wanted);
      std::vector<std::byte> read(expected.size() + 1, std::byte{0x5a});
      reader.read(tensor.name, wanted, tensor.dtype, read.data());
      EXPECT_EQ(read.back(), std::byte{0x5a});
      read.pop_back();
      EXPECT_EQ(read, expected);
    }
    reader.verify_all();
  }
}

TEST_F(Checkpoint, PartsAreWrittenAndReadByThreadsAtOnce) {
  constexpr std::int64_t kThreads = 4;
  const WholeTensor tensor = random_tensor("a", {64, 32}, DType::kF32);
  const auto rows_of = [&](std::int64_t thread) { return Rectangle{{thread * 16, 0}, {16, 32}}; };
  CheckpointWriter writer(step(1));
  std::vector<proto::ManifestPart> parts(kThreads);
  const auto on_threads = [&](const auto& action) {
    std::vector<std::jthread> threads;
    for (std::int64_t thread = 0; thread < kThreads; ++thread)
      threads.emplace_back([&action, thread] { action(thread); });
  };
  on_threads([&](std::int64_t thread) {
    const Rectangle rows = rows_of(thread);
    const std::vector<std::byte> data = cut_out(tensor, rows);
    const std::vector<TensorSlice> slices = {{"a", tensor.shape, tensor.dtype, rows.offset, rows.shape, data.data()}};
    parts[static_cast<std::size_t>(thread)] = write_checkpoint_part(step(1), static_cast<int>(thread), slices, 300);
  });
  writer.commit(some_manifest(), parts);
  on_threads([&](std::int64_t) { expect_equal(step(1), {tensor}); });
}

TEST_F(Checkpoint, NoShardFileHoldsMoreThanTheLimitAllowsForWholeRows) {
  const WholeTensor tensor = random_tensor("wide", {1000, 16}, DType::kF32);
  const WholeTensor small = random_tensor("small", {300}, DType::kU8);
  save(step(1), {tensor, small}, 1, 10000);
  expect_equal(step(1), {tensor, small});
  const CheckpointReader reader(step(1));
  EXPECT_EQ(reader.tensor("wide").slices_size(), 7);  // 156 rows of 64 bytes each
  for (const proto::ShardFile& file : reader.manifest().files()) EXPECT_LT(file.bytes(), 10000u + 8192u);
}

TEST_F(Checkpoint, WhatWasNotStoredIsRefusedByName) {
  save(step(1), {random_tensor("a", {4, 4}, DType::kF32)}, 2);
  CheckpointReader reader(step(1));
  std::array<float, 64> out{};
  EXPECT_THAT(message_of([&] { reader.read("b", DType::kF32, out.data()); }), HasSubstr("has no tensor b"));
  EXPECT_THAT(message_of([&] { reader.read("a", DType::kI32, out.data()); }),
              HasSubstr("tensor a is f32, read as i32"));
  EXPECT_THAT(message_of([&] {
                reader.read("a", {{0, 2}, {4, 3}}, DType::kF32, out.data());
              }),
              HasSubstr("[4, 3] at [0, 2] is not inside tensor a"));
  EXPECT_THAT(message_of([&] { CheckpointReader(folder_.path()); }), HasSubstr("is no checkpoint"));
}

TEST_F(Checkpoint, SlicesThatOverlapOrLeaveGapsAreNotCommitted) {
  const std::vector<float> data(8, 1.0f);
  const auto commit = [&](const std::vector<TensorSlice>& slices) {
    CheckpointWriter writer(step(1));
    const proto::ManifestPart part = writer.write_part(0, slices);
    writer.commit({}, std::span(&part, 1));
  };
  const TensorSlice first{"a", {4, 2}, DType::kF32, {0, 0}, {2, 2}, data.data()};
  TensorSlice second = first;
  second.offset = {1, 0};
  EXPECT_THAT(message_of([&] { commit({first}); }), HasSubstr("hold 4 of the 8 elements"));
  EXPECT_THAT(message_of([&] { commit({first, second}); }), HasSubstr("overlap"));
  second.offset = {3, 0};
  EXPECT_THAT(message_of([&] { commit({first, second}); }), HasSubstr("not inside"));
  EXPECT_THAT(names_beside(), ::testing::IsEmpty());
}

TEST_F(Checkpoint, TruncationAnywhereIsRefusedWithTheFilesName) {
  save(step(1), random_tensors(4), 2);
  for (const fs::path& file : files_in(step(1))) {
    const std::string whole = read_bytes(file);
    for (const double kept : {0.0, 0.1, 0.5, 0.9, 1.0}) {
      const auto size = static_cast<std::size_t>(kept * static_cast<double>(whole.size() - 1));
      overwrite(file, std::string_view(whole).substr(0, size));
      EXPECT_THAT(message_of([&] { CheckpointReader(step(1)).verify_all(); }),
                  AllOf(HasSubstr("input: "), HasSubstr(file.string())));
    }
    overwrite(file, whole + "x");
    EXPECT_THAT(message_of([&] { CheckpointReader(step(1)).verify_all(); }), HasSubstr(file.string()));
    fs::remove(file);
    EXPECT_THAT(message_of([&] { CheckpointReader(step(1)).verify_all(); }), HasSubstr(file.filename().string()));
    overwrite(file, whole);
  }
  CheckpointReader(step(1)).verify_all();
}

TEST_F(Checkpoint, AFlippedBitAnywhereIsRefusedWithTheFilesName) {
  const std::vector<WholeTensor> tensors = random_tensors(4);
  save(step(1), tensors, 2);
  for (const fs::path& file : files_in(step(1))) {
    const auto size = static_cast<std::int64_t>(fs::file_size(file));
    for (int round = 0; round < 60; ++round) {
      const auto byte = static_cast<std::size_t>(draw(0, size - 1));
      const int bit = static_cast<int>(draw(0, 7));
      flip_bit(file, byte, bit);
      EXPECT_THAT(message_of([&] { CheckpointReader(step(1)).verify_all(); }),
                  AllOf(HasSubstr("input: "), HasSubstr(file.string())))
          << "bit " << bit << " of byte " << byte;
      flip_bit(file, byte, bit);
    }
  }
  expect_equal(step(1), tensors);
}

TEST_F(Checkpoint, ForeignFilesAreRefused) {
  save(step(1), {random_tensor("a", {64}, DType::kF32)}, 1);
  const fs::path shard = step(1) / "shard-0-0.h5";
  overwrite(shard, std::string(fs::file_size(shard), 'x'));
  EXPECT_THAT(message_of([&] { CheckpointReader(step(1)).verify_all(); }), HasSubstr(shard.string()));
  overwrite(step(1) / "manifest.pb", "{\"metadata\": {}}");
  EXPECT_THAT(message_of([&] { CheckpointReader(step(1)); }), HasSubstr("manifest.pb"));
}

TEST_F(Checkpoint, AManifestThatLiesIsRefusedEvenWithARightChecksum) {
  save(step(1), {random_tensor("a", {4, 4}, DType::kF32)}, 2);
  const proto::Manifest whole = CheckpointReader(step(1)).manifest();
  const auto refused = [&](const auto& change) {
    proto::Manifest manifest = whole;
    change(manifest);
    return message_of([&] { unseal_manifest(seal_manifest(manifest), "m.pb"); });
  };
  EXPECT_EQ(refused([](auto&) {}), "nothing was thrown");
  EXPECT_THAT(refused([](auto& m) { m.set_format(2); }), HasSubstr("m.pb is of format 2"));
  EXPECT_THAT(refused([](auto& m) { m.mutable_files(0)->set_name("../passwd"); }), HasSubstr("'../passwd'"));
  EXPECT_THAT(refused([](auto& m) { m.add_files()->set_name(m.files(0).name()); }), HasSubstr("listed twice"));
  EXPECT_THAT(refused([](auto& m) { m.mutable_tensors(0)->set_dtype("f31"); }), HasSubstr("'f31'"));
  EXPECT_THAT(refused([](auto& m) { m.add_tensors()->CopyFrom(m.tensors(0)); }), HasSubstr("listed twice"));
  EXPECT_THAT(refused([](auto& m) { m.mutable_tensors(0)->mutable_slices(0)->set_file(99); }), HasSubstr("in file 99"));
  EXPECT_THAT(refused([](auto& m) { m.mutable_tensors(0)->mutable_slices(0)->clear_offset(); }),
              HasSubstr("not inside"));
  EXPECT_THAT(refused([](auto& m) { m.mutable_tensors(0)->set_shape(0, std::int64_t{1} << 62); }),
              HasSubstr("makes no sense"));
  EXPECT_THAT(refused([](auto& m) { m.mutable_tensors(0)->mutable_slices(0)->set_offset(0, -1); }),
              HasSubstr("not inside"));
}

TEST_F(Checkpoint, MutatedManifestsAreReadOrRefusedButNeverCrash) {
  save(step(1), random_tensors(5), 3);
  const google::protobuf::LogSilencer no_complaints_about_utf8;
  const proto::Manifest whole = CheckpointReader(step(1)).manifest();
  const std::string content = whole.SerializeAsString();
  const std::string sealed = seal_manifest(whole);
  for (int round = 0; round < 3000; ++round) {
    // Half of them get a right checksum, so that the content's own checks are reached.
    const bool resealed = round % 2 == 0;
    std::string bytes = resealed ? content : sealed;
    for (std::int64_t changes = draw(1, 4); changes > 0 && !bytes.empty(); --changes) {
      const auto at = static_cast<std::size_t>(draw(0, static_cast<std::int64_t>(bytes.size()) - 1));
      switch (draw(0, 3)) {
        case 0:
          bytes[at] = static_cast<char>(draw(0, 255));
          break;
        case 1:
          bytes.erase(at, static_cast<std::size_t>(draw(1, 8)));
          break;
        case 2:
          bytes.insert(at, static_cast<std::size_t>(draw(1, 8)), static_cast<char>(draw(0, 255)));
          break;
        default:
          bytes.resize(at);
      }
    }
    proto::Manifest parsed;
    if (resealed && !parsed.ParseFromString(bytes)) continue;
    try {
      unseal_manifest(resealed ? seal_manifest(parsed) : bytes, "mutated");
    } catch (const InputError& error) {
      EXPECT_STRNE(error.what(), "");
    }
  }
}

TEST_F(Checkpoint, SavingTheSameStepAgainReplacesItAndLeavesNothingBeside) {
  save(step(5), {random_tensor("old", {3}, DType::kF32)}, 3);
  const std::vector<WholeTensor> tensors = {random_tensor("new", {8, 2}, DType::kF32)};
  save(step(5), tensors, 1);
  expect_equal(step(5), tensors);
  EXPECT_EQ(files_in(step(5)).size(), 2u);
  EXPECT_THAT(names_beside(), ::testing::ElementsAre("step-00000005"));
}

TEST_F(Checkpoint, WhateverElseStandsInItsPlaceIsSetAsideWhole) {
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

TEST_F(Checkpoint, AnUnfinishedOneOfOurFilesAloneIsReplaced) {
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

TEST_F(Checkpoint, PruningLeavesWhatIsNoCheckpoint) {
  const std::vector<WholeTensor> tensors = random_tensors(2);
  folder_.write("step-00000005/thesis.tex", "ten years");
  for (const std::uint64_t number : {6u, 7u, 8u}) save(step(number), tensors, 1);
  fs::remove(step(6) / "manifest.pb");
  prune_checkpoints(folder_.path(), 1);
  EXPECT_THAT(names_beside(), ::testing::ElementsAre("step-00000005", "step-00000008"));
}

TEST_F(Checkpoint, AnInterruptedSaveIsIgnoredAndClearedByWhoWritesThemAll) {
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

TEST_F(Checkpoint, AProcessKilledBeforeTheRenameLosesOnlyItsOwnSave) {
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

TEST_F(Checkpoint, ACheckpointThatWasBeingReplacedComesBack) {
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

TEST_F(Checkpoint, AWriterThatIsNotCommittedLeavesNothing) {
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

TEST_F(Checkpoint, AFullDiskNamesTheFileAndLeavesTheLastCheckpointAlone) {
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

TEST_F(Checkpoint, AFullDiskAtTheManifestLeavesTheLastCheckpointAlone) {
  std::vector<WholeTensor> tensors;
  for (int i = 0; i < 300; ++i) tensors.push_back(random_tensor("tensor-" + std::to_string(i), {1}, DType::kU8));
  save(step(1), tensors, 1, 1);  // a file a tensor, so the manifest is the largest
  with_file_limit(16384, [&] {
    EXPECT_THAT(message_of([&] { save(step(2), tensors, 1, 1); }), AllOf(HasSubstr("run: "), HasSubstr("manifest.pb")));
  });
  EXPECT_THAT(names_beside(), ::testing::ElementsAre("step-00000001"));
}

TEST_F(Checkpoint, AnUnusablePlaceIsNamed) {
  const fs::path file = folder_.write("file", "a file, no folder");
  EXPECT_THAT(message_of([&] { CheckpointWriter writer(file / "step-00000001"); }), HasSubstr(file.string()));
  EXPECT_THAT(message_of([&] { CheckpointWriter writer("/proc/nowhere/step-00000001"); }), HasSubstr("/proc/nowhere"));
  EXPECT_THAT(message_of([&] { write_checkpoint_part(step(1), 0, std::vector<TensorSlice>{}); }), "nothing was thrown");
  const float one = 1;
  const std::vector<TensorSlice> slices = {{"a", {1}, DType::kF32, {0}, {1}, &one}};
  EXPECT_THAT(message_of([&] { write_checkpoint_part(step(1), 0, slices); }),
              AllOf(HasSubstr("run: cannot create"), HasSubstr("shard-0-0.h5")));
}

TEST_F(Checkpoint, TheLatestIsTheNewestWholeOne) {
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

TEST_F(Checkpoint, PruningKeepsTheNewestWholeOnesAndTheBest) {
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
  folder_.write("best", "../../etc");
  EXPECT_THAT(message_of([&] { best_checkpoint(folder_.path()); }), HasSubstr("must hold the name"));
}

}  // namespace
}  // namespace kvloom
