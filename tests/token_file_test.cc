#include "data/token_file.h"

#include <gtest/gtest.h>
#include <hdf5.h>

#include "tests/support/random.h"
#include "tests/support/temporary_folder.h"

namespace kvloom {
namespace {

struct Written {
  std::vector<std::int32_t> training;
  std::vector<std::int32_t> validation;
};

Written write(const std::filesystem::path& path, test::Random& random, std::int64_t vocab, std::size_t count) {
  Written written;
  TokenFileWriter writer(
      path, {.vocab = vocab, .tokenizer_kind = "bytes", .tokenizer_model = "a model", .created_by = "test"});
  while (written.training.size() < count) {
    const Part part = random.integer(0, 4) == 0 ? Part::kValidation : Part::kTraining;
    const auto tokens = random.tokens(static_cast<std::size_t>(random.integer(1, 5000)), vocab);
    writer.begin_document(part);
    writer.append(part, tokens, tokens.size());
    auto& all = part == Part::kTraining ? written.training : written.validation;
    all.insert(all.end(), tokens.begin(), tokens.end());
  }
  writer.add_provenance("{}");
  writer.finish();
  return written;
}

std::vector<std::int32_t> read_all(const TokenFile& file, Part part) {
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(file.count(part)));
  file.read(part, 0, tokens);
  return tokens;
}

TEST(TokenFile, GivesBackWhatWasWritten) {
  test::Random random;
  const TemporaryFolder folder;
  for (const std::int64_t vocab : {257, 65536, 200000}) {
    const std::filesystem::path path = folder / "tokens.h5";
    const Written written = write(path, random, vocab, 700000);  // more than one block
    const TokenFile file(path);
    EXPECT_EQ(file.vocab(), vocab);
    EXPECT_EQ(file.tokenizer_model(), "a model");
    EXPECT_EQ(file.provenance(), "{}\n");
    EXPECT_EQ(read_all(file, Part::kTraining), written.training);
    EXPECT_EQ(read_all(file, Part::kValidation), written.validation);
    EXPECT_EQ(file.text_bytes(Part::kTraining), written.training.size());
    std::vector<std::int32_t> some(100);
    file.read(Part::kTraining, 524250, some);
    EXPECT_TRUE(std::equal(some.begin(), some.end(), written.training.begin() + 524250));
  }
}

TEST(TokenFile, IsPlainHdf5ToOthers) {
  test::Random random;
  const TemporaryFolder folder;
  const Written written = write(folder / "tokens.h5", random, 300, 10000);
  const hid_t file = H5Fopen((folder / "tokens.h5").c_str(), H5F_ACC_RDONLY, H5P_DEFAULT);
  ASSERT_GE(file, 0);
  const hid_t dataset = H5Dopen2(file, "tokens", H5P_DEFAULT);
  std::vector<std::int32_t> tokens(written.training.size());
  EXPECT_GE(H5Dread(dataset, H5T_NATIVE_INT32, H5S_ALL, H5S_ALL, H5P_DEFAULT, tokens.data()), 0);
  EXPECT_EQ(tokens, written.training);
  H5Dclose(dataset);
  H5Fclose(file);
}

TEST(TokenFile, DamagedIsRefusedByNameOrReadsTheSame) {
  test::Random random;
  const TemporaryFolder folder;
  const Written written = write(folder / "tokens.h5", random, 300, 20000);
  const std::string whole = read_bytes(folder / "tokens.h5");
  int refused = 0;
  for (int round = 0; round < 300; ++round) {
    std::string bytes = whole;
    if (round % 3 == 0) {
      bytes.resize(static_cast<std::size_t>(random.integer(0, static_cast<std::int64_t>(whole.size()) - 1)));
    } else {
      const auto at = static_cast<std::size_t>(random.integer(0, static_cast<std::int64_t>(whole.size()) - 1));
      bytes[at] = static_cast<char>(bytes[at] ^ (1 << random.integer(0, 7)));
    }
    folder.write("damaged.h5", bytes);
    try {
      const TokenFile file(folder / "damaged.h5");
      EXPECT_EQ(read_all(file, Part::kTraining), written.training);
      EXPECT_EQ(read_all(file, Part::kValidation), written.validation);
    } catch (const InputError& error) {
      EXPECT_NE(std::string(error.what()).find("damaged.h5"), std::string::npos) << error.what();
      ++refused;
    }
  }
  EXPECT_GE(refused, 200);
}

TEST(TokenFile, VerifyingFindsTheFirstDamagedBlockWithAnyNumberOfThreads) {
  test::Random random;
  const TemporaryFolder folder;
  const Written written = write(folder / "tokens.h5", random, 200000, 900000);  // four blocks and more
  const std::string whole = read_bytes(folder / "tokens.h5");
  const TokenFile sound(folder / "tokens.h5");
  for (const int threads : {1, 3, 16}) {
    std::uint64_t bytes = 0;
    sound.verify_all(threads, [&](const VerifyProgress& done) {
      EXPECT_GT(done.bytes, bytes);
      bytes = done.bytes;
    });
    EXPECT_EQ(bytes, 4 * (written.training.size() + written.validation.size()));
  }
  for (const int threads : {-1, 0, 1, 3}) {
    std::string bytes = whole;
    for (const proto::TokenFileDataset& dataset : sound.header().datasets()) {
      if (dataset.name() != "tokens") continue;
      const std::int64_t block = 1 << 20;
      for (const std::int64_t damaged : {2 * block, block}) {
        const std::int64_t at = static_cast<std::int64_t>(dataset.offset()) + damaged + random.integer(0, block / 2);
        bytes[static_cast<std::size_t>(at)] ^= 4;
      }
    }
    folder.write("damaged.h5", bytes);
    const TokenFile file(folder / "damaged.h5");
    try {
      file.verify_all(threads);
      ADD_FAILURE() << "nothing was thrown";
    } catch (const InputError& error) {
      EXPECT_NE(std::string(error.what()).find("block 1 of 'tokens' is damaged"), std::string::npos) << error.what();
    }
  }
}

TEST(TokenFile, WithoutTokensIsNotWritten) {
  const TemporaryFolder folder;
  {
    TokenFileWriter writer(folder / "tokens.h5", {.vocab = 10, .tokenizer_kind = "bytes"});
    EXPECT_THROW(writer.finish(), InputError);
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(TokenFile, WhoseSecondPartCannotBeOpenedLeavesNothing) {
  const TemporaryFolder folder;
  const std::filesystem::path obstacle = folder / ".tokens.h5.validation";
  std::filesystem::create_directory(obstacle);
  EXPECT_THROW(TokenFileWriter(folder / "tokens.h5", {.vocab = 10, .tokenizer_kind = "bytes"}), Error);
  EXPECT_FALSE(std::filesystem::exists(folder / ".tokens.h5.training"));
  EXPECT_TRUE(std::filesystem::is_directory(obstacle));
}

}  // namespace
}  // namespace kvloom
