#include "core/hdf5.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <hdf5.h>
#include <sys/stat.h>
#include <unistd.h>

#include <numeric>

#include "core/file.h"
#include "core/hdf5_atomic.h"
#include "kernels/error.h"
#include "tests/support/hdf5_file.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/thrown.h"

namespace kvloom {
namespace {

using test::message_of;
using ::testing::AllOf;
using ::testing::HasSubstr;

class Hdf5 : public ::testing::Test {
 protected:
  // A file with the dataset "group/numbers", f32 [3, 4], counting from 0.
  std::filesystem::path write_numbers() const {
    std::vector<float> numbers(12);
    std::iota(numbers.begin(), numbers.end(), 0.0f);
    const hdf5::File file = hdf5::File::create_in_memory("numbers", 4096);
    hdf5::write_dataset(file, "/group/numbers", {3, 4}, DType::kF32, numbers.data());
    write_file_durably(folder_ / "numbers.h5", file.image());
    return folder_ / "numbers.h5";
  }
  TemporaryFolder folder_;
};

TEST_F(Hdf5, AnImageInMemoryIsAFileOnDisk) {
  const hdf5::File file = hdf5::File::open(write_numbers());
  std::vector<float> read(12, -1);
  hdf5::read_dataset(file, "/group/numbers", {3, 4}, DType::kF32, {{0, 0}, {3, 4}},
                     {{3, 4}, {{0, 0}, {3, 4}}, read.data()});
  for (int i = 0; i < 12; ++i) EXPECT_EQ(read[static_cast<std::size_t>(i)], static_cast<float>(i));
}

TEST_F(Hdf5, ARectangleIsReadIntoARectangle) {
  const hdf5::File file = hdf5::File::open(write_numbers());
  std::vector<float> read(6, -1);
  hdf5::read_dataset(file, "/group/numbers", {3, 4}, DType::kF32, {{1, 2}, {2, 2}},
                     {{2, 3}, {{0, 1}, {2, 2}}, read.data()});
  EXPECT_THAT(read, ::testing::ElementsAre(-1, 6, 7, -1, 10, 11));
}

TEST_F(Hdf5, AFileInPiecesIsWhatWasWrittenAndOpensOnlyOnceItIsClosed) {
  const std::filesystem::path path = folder_ / "pieces.h5";
  hdf5::File file = hdf5::File::create(path);
  hdf5::create_dataset(file, "a.b", {2, 3}, DType::kI32);
  const std::vector<std::int32_t> low = {1, 2};
  const std::vector<std::int32_t> high = {3, 4, 5};
  hdf5::write_rectangle(file, "a.b", {{1, 0}, {1, 3}}, DType::kI32, high.data());
  hdf5::write_rectangle(file, "a.b", {{0, 1}, {1, 2}}, DType::kI32, low.data());
  hdf5::write_attribute(file, "text", std::string("zwei\nZeilen é"));
  hdf5::write_attribute(file, "integer", std::int64_t{-7});
  hdf5::write_attribute(file, "number", 0.1);
  std::filesystem::copy_file(path, folder_ / "interrupted.h5");
  EXPECT_FALSE(test::Hdf5File::opens(folder_ / "interrupted.h5"));
  file.close();
  const test::Hdf5File read(path);
  EXPECT_THAT(read.integers("a.b").values, ::testing::ElementsAre(0, 1, 2, 3, 4, 5));
  EXPECT_EQ(read.text("text"), "zwei\nZeilen é");
  EXPECT_EQ(read.integer("integer"), -7);
  EXPECT_EQ(read.number("number"), 0.1);
}

TEST_F(Hdf5, AnAtomicFileStandsUnderItsNameOnlyOnceCommitted) {
  const std::filesystem::path path = folder_.write("atomic.h5", "old");
  {
    const hdf5::AtomicFile given_up(path);
    hdf5::write_attribute(given_up.file(), "number", 1.0);
    EXPECT_EQ(read_bytes(path), "old");
  }
  EXPECT_EQ(read_bytes(path), "old");
  hdf5::AtomicFile file(path);
  hdf5::write_attribute(file.file(), "number", 2.0);
  file.commit();
  EXPECT_EQ(test::Hdf5File(path).number("number"), 2.0);
  const auto entries = std::filesystem::directory_iterator(folder_.path());
  EXPECT_EQ(std::distance(begin(entries), end(entries)), 1) << "no sibling stays";
  EXPECT_THAT(message_of([&] { hdf5::AtomicFile(folder_ / "missing/a.h5"); }),
              AllOf(HasSubstr("input: "), HasSubstr("missing/a.h5 cannot be written: there is no folder")));
  EXPECT_THAT(message_of([&] { hdf5::AtomicFile{folder_.path()}; }), HasSubstr("it is a folder"));
}

// A pipe or a device is no file to put another one in place of; a link leads to one.
TEST_F(Hdf5, OnlyRegularFilesAreReplacedAndLinksAreFollowed) {
  const std::filesystem::path pipe = folder_ / "pipe";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  const std::filesystem::path real = folder_.write("real.h5", "old");
  const std::filesystem::path link = folder_ / "link.h5";
  std::filesystem::create_symlink("real.h5", link);
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  const std::filesystem::path to_pipe = "/proc/self/fd/" + std::to_string(ends[1]);
  for (const std::filesystem::path& path : {pipe, to_pipe}) {
    EXPECT_THAT(message_of([&] { hdf5::AtomicFile{path}; }), HasSubstr("cannot be written: it is not a regular file"));
    EXPECT_THAT(message_of([&] { write_file_atomically(path, "new"); }),
                AllOf(HasSubstr("input: "), HasSubstr("it is not a regular file")));
  }
  ::close(ends[0]);
  ::close(ends[1]);
  EXPECT_TRUE(std::filesystem::is_fifo(pipe));
  std::filesystem::create_symlink("loop_b", folder_ / "loop_a");
  std::filesystem::create_symlink("loop_a", folder_ / "loop_b");
  EXPECT_THAT(message_of([&] { write_file_atomically(folder_ / "loop_a", "new"); }), HasSubstr("input: "));
  std::filesystem::create_symlink("nowhere/x", folder_ / "to_nowhere");
  EXPECT_THAT(message_of([&] { write_file_atomically(folder_ / "to_nowhere", "new"); }),
              HasSubstr("there is no folder"));
  std::filesystem::create_symlink("not_yet", folder_ / "dangling");
  write_file_atomically(folder_ / "dangling", "new");
  EXPECT_TRUE(std::filesystem::is_symlink(folder_ / "dangling"));
  EXPECT_EQ(read_bytes(folder_ / "not_yet"), "new");
  write_file_atomically(link, "new");
  EXPECT_TRUE(std::filesystem::is_symlink(link));
  EXPECT_EQ(read_bytes(real), "new");
  hdf5::AtomicFile(link).commit();
  EXPECT_TRUE(std::filesystem::is_symlink(link));
  EXPECT_TRUE(read_bytes(real).starts_with("\x89HDF"));
}

TEST_F(Hdf5, AFailingCallIsNamedWithTheFileAndTheReason) {
  const std::string missing = (folder_ / "missing.h5").string();
  EXPECT_THAT(message_of([&] { hdf5::File::open(missing); }),
              AllOf(HasSubstr("input: " + missing), HasSubstr("H5Fopen"), HasSubstr("No such file")));
  const auto foreign = folder_.write("foreign.h5", "not of this kind");
  EXPECT_THAT(message_of([&] { hdf5::File::open(foreign); }), HasSubstr("input: " + foreign.string()));
  const hdf5::File file = hdf5::File::create_in_memory("twice", 4096);
  const float one = 1;
  hdf5::write_dataset(file, "/a", {1}, DType::kF32, &one);
  EXPECT_THAT(message_of([&] { hdf5::write_dataset(file, "/a", {1}, DType::kF32, &one); }),
              HasSubstr("run: twice: H5Dcreate2"));
}

TEST_F(Hdf5, ADatasetOfAnotherShapeOrDtypeIsRefused) {
  const hdf5::File file = hdf5::File::open(write_numbers());
  std::vector<double> out(12);
  const auto read = [&](const Shape& shape, DType dtype) {
    hdf5::read_dataset(file, "/group/numbers", shape, dtype, {{0, 0}, {1, 1}}, {{1, 1}, {{0, 0}, {1, 1}}, out.data()});
  };
  EXPECT_THAT(message_of([&] { read({4, 3}, DType::kF32); }), HasSubstr("has shape [3, 4], not [4, 3]"));
  EXPECT_THAT(message_of([&] { read({3, 4}, DType::kF64); }), HasSubstr("not of dtype f64"));
}

TEST_F(Hdf5, HalfPrecisionKeepsItsBitsAndItsName) {
  const std::vector<std::uint16_t> bits = {0x3f80, 0x0001, 0x7fc0, 0xffff};
  const hdf5::File file = hdf5::File::create_in_memory("half", 4096);
  hdf5::write_dataset(file, "/b", {4}, DType::kBF16, bits.data());
  std::vector<std::uint16_t> read(4);
  const auto read_as = [&](DType dtype) {
    hdf5::read_dataset(file, "/b", {4}, dtype, {{0}, {4}}, {{4}, {{0}, {4}}, read.data()});
  };
  read_as(DType::kBF16);
  EXPECT_EQ(read, bits);
  EXPECT_THAT(message_of([&] { read_as(DType::kF16); }), HasSubstr("not of dtype f16"));
  EXPECT_THAT(message_of([&] { read_as(DType::kU16); }), HasSubstr("not of dtype u16"));
}

// A dataset "/b" of u16 [4] whose attribute "dtype" is of the type and space.
hdf5::File with_attribute(hid_t type, hid_t space, const std::string& content) {
  const std::vector<std::uint16_t> bits(4, 1);
  hdf5::File file = hdf5::File::create_in_memory("crafted", 4096);
  hdf5::write_dataset(file, "/b", {4}, DType::kU16, bits.data());
  const hdf5::Handle dataset(H5Dopen2(file.id(), "/b", H5P_DEFAULT), H5Dclose);
  const hdf5::Handle attribute(H5Acreate2(dataset.get(), "dtype", type, space, H5P_DEFAULT, H5P_DEFAULT), H5Aclose);
  EXPECT_GE(H5Awrite(attribute.get(), type, content.data()), 0);
  return file;
}

hdf5::Handle string_type(std::size_t length) {
  hdf5::Handle type(H5Tcopy(H5T_C_S1), H5Tclose);
  H5Tset_size(type.get(), length);
  return type;
}

TEST_F(Hdf5, AnAttributeThatWouldNotFitIsRefusedUnread) {
  const auto refusal = [](const hdf5::File& file) {
    std::vector<std::uint16_t> read(4);
    return message_of([&] {
      hdf5::read_dataset(file, "/b", {4}, DType::kBF16, {{0}, {4}}, {{4}, {{0}, {4}}, read.data()});
    });
  };
  const auto is_refused = AllOf(HasSubstr("crafted: dataset /b"), HasSubstr("'dtype' is not one string"));
  const std::string content(1 << 20, 'x');
  const hdf5::Handle scalar(H5Screate(H5S_SCALAR), H5Sclose);
  const hdf5::Handle nothing(H5Screate(H5S_NULL), H5Sclose);
  for (const hsize_t count : {hsize_t{1}, hsize_t{2}, hsize_t{5000}}) {
    const hdf5::Handle many(H5Screate_simple(1, &count, nullptr), H5Sclose);
    EXPECT_THAT(refusal(with_attribute(string_type(8).get(), many.get(), content)), is_refused) << count;
  }
  EXPECT_THAT(refusal(with_attribute(string_type(9).get(), scalar.get(), content)), is_refused);
  EXPECT_THAT(refusal(with_attribute(string_type(60000).get(), scalar.get(), content)), is_refused);
  EXPECT_THAT(refusal(with_attribute(string_type(4).get(), nothing.get(), content)), is_refused);
  EXPECT_THAT(refusal(with_attribute(H5T_STD_I64LE, scalar.get(), content)), is_refused);
  EXPECT_EQ(refusal(with_attribute(string_type(4).get(), scalar.get(), "bf16")), "nothing was thrown");
}

}  // namespace
}  // namespace kvloom
