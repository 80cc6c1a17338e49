#include "train/tensorboard.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "tests/support/random.h"
#include "tests/support/temporary_folder.h"

namespace kvloom {
namespace {

// Bit by bit, from the definition.
std::uint32_t slow_crc32c(std::string_view bytes) {
  std::uint32_t crc = ~0u;
  for (const char c : bytes) {
    crc ^= static_cast<unsigned char>(c);
    for (int bit = 0; bit < 8; ++bit) crc = (crc & 1) != 0 ? (crc >> 1) ^ 0x82f63b78u : crc >> 1;
  }
  return ~crc;
}

std::uint32_t unmasked(std::uint32_t masked) {
  const std::uint32_t rotated = masked - 0xa282ead8u;
  return (rotated >> 17) | (rotated << 15);
}

template <typename T>
T value_at(std::string_view bytes, std::size_t offset) {
  T value;
  std::memcpy(&value, bytes.substr(offset).data(), sizeof(value));
  return value;
}

// The events of a file, every checksum checked. Tests run on little-endian machines, as the file is.
std::vector<proto::tensorboard::Event> events_of(const std::filesystem::path& path) {
  const std::string content = read_bytes(path);
  std::string_view bytes = content;
  std::vector<proto::tensorboard::Event> events;
  while (!bytes.empty()) {
    const auto length = value_at<std::uint64_t>(bytes, 0);
    EXPECT_EQ(unmasked(value_at<std::uint32_t>(bytes, 8)), slow_crc32c(bytes.substr(0, 8)));
    const std::string_view body = bytes.substr(12, length);
    EXPECT_EQ(unmasked(value_at<std::uint32_t>(bytes, 12 + length)), slow_crc32c(body));
    EXPECT_TRUE(events.emplace_back().ParseFromArray(body.data(), static_cast<int>(body.size())));
    bytes.remove_prefix(16 + length);
  }
  return events;
}

TEST(Crc32c, HasItsPublishedCheckValues) {
  EXPECT_EQ(crc32c("123456789"), 0xE3069283u);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8A9136AAu);  // RFC 3720, B.4
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62A8AB43u);
}

TEST(Crc32c, EqualsTheDefinition) {
  test::Random random;
  for (int repeat = 0; repeat < 20; ++repeat) {
    std::string bytes(static_cast<std::size_t>(random.integer(0, 300)), '\0');
    for (char& c : bytes) c = static_cast<char>(random.integer(-128, 127));
    EXPECT_EQ(crc32c(bytes), slow_crc32c(bytes));
  }
}

TEST(Tensorboard, EventsComeBackAsTheyWereWritten) {
  const TemporaryFolder folder;
  test::Random random;
  TensorboardWriter writer(folder / "board", 0);
  std::vector<StepMetrics> written;
  for (std::uint64_t step = 1; step <= 5; ++step) {
    written.push_back({step, random.normal(), random.normal(), 0, random.normal(), {{"peak_bytes", 2.5}}});
    writer.write(written.back());
  }
  const auto events = events_of(writer.path());
  ASSERT_EQ(events.size(), 7u);
  EXPECT_EQ(events[0].file_version(), "brain.Event:2");
  for (std::size_t i = 0; i < written.size(); ++i) {
    std::map<std::string, float> scalars;
    for (const auto& value : events[i + 2].summary().value()) {
      EXPECT_TRUE(value.has_simple_value());
      scalars[value.tag()] = value.simple_value();
    }
    const std::map<std::string, float> expected{{"loss", static_cast<float>(written[i].loss)},
                                                {"learning_rate", static_cast<float>(written[i].learning_rate)},
                                                {"grad_norm", 0.0F},
                                                {"tokens_per_second", static_cast<float>(written[i].tokens_per_second)},
                                                {"peak_bytes", 2.5F}};
    EXPECT_EQ(scalars, expected);
    EXPECT_EQ(events[i + 2].step(), static_cast<std::int64_t>(written[i].step));
    EXPECT_GT(events[i + 2].wall_time(), 1.5e9);
  }
}

TEST(Tensorboard, AnEvaluationIsAnEventOfItsStep) {
  const TemporaryFolder folder;
  TensorboardWriter writer(folder.path(), 0);
  writer.write(EvaluationMetrics{.step = 3, .loss = 2});
  const auto events = events_of(writer.path());
  ASSERT_EQ(events.size(), 3u);
  EXPECT_EQ(events[2].step(), 3);
  std::map<std::string, float> scalars;
  for (const auto& value : events[2].summary().value()) scalars[value.tag()] = value.simple_value();
  EXPECT_EQ(scalars, (std::map<std::string, float>{{"validation_loss", 2.0F},
                                                   {"validation_perplexity", static_cast<float>(std::exp(2.0))}}));
}

// TensorBoard's event.proto: Event.step is field 2, Event.session_log field 7, SessionLog.status field 1, START 1.
TEST(Tensorboard, AResumedRunSaysFromWhichStepOnOlderEventsAreVoid) {
  for (const auto& [resumed, first] : {std::pair(0, 0), std::pair(7, 8), std::pair(100, 101)}) {
    const TemporaryFolder folder;
    const TensorboardWriter writer(folder.path(), static_cast<std::uint64_t>(resumed));
    const std::string content = read_bytes(writer.path());
    const std::string_view bytes = content;
    const auto before = value_at<std::uint64_t>(bytes, 0) + 16;  // the record of file_version
    const std::string_view event = bytes.substr(before + 12, value_at<std::uint64_t>(bytes, before));
    EXPECT_EQ(event.substr(0, 1), "\x09");  // wall_time, eight bytes
    std::string expected;
    if (first != 0) expected += {'\x10', static_cast<char>(first)};
    expected += {'\x3a', '\x02', '\x08', '\x01'};
    EXPECT_EQ(event.substr(9), expected) << resumed;
  }
}

TEST(Tensorboard, ASecondRunInTheSameFolderBeginsAFileOfItsOwn) {
  const TemporaryFolder folder;
  const TensorboardWriter first(folder.path(), 0);
  const TensorboardWriter second(folder.path(), 0);
  EXPECT_NE(first.path(), second.path());
  EXPECT_EQ(first.path().filename().string().rfind("events.out.tfevents.", 0), 0u);
}

}  // namespace
}  // namespace kvloom
