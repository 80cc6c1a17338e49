// What a checkpoint holds comes back under any cut; what is damaged, foreign or lies is refused.
#include <gmock/gmock.h>
#include <google/protobuf/stubs/logging.h>
#include <gtest/gtest.h>

#include <thread>

#include "core/checkpoint_manifest.h"
#include "core/file.h"
#include "tests/support/checkpoint_fixture.h"

namespace kvloom {
namespace {

namespace fs = std::filesystem;
using test::kDTypes;
using test::message_of;
using test::WholeTensor;
using ::testing::AllOf;
using ::testing::HasSubstr;

class Checkpoint : public test::CheckpointTest {};

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
}  // namespace
}  // namespace kvloom
