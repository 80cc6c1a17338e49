#include "train/tensorboard.h"

#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "kernels/error.h"

namespace kvloom {
namespace {

constexpr std::array<std::uint32_t, 256> make_crc_table() {
  constexpr std::uint32_t kPolynomial = 0x82f63b78;  // reflected
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t byte = 0; byte < table.size(); ++byte) {
    std::uint32_t remainder = byte;
    for (int bit = 0; bit < 8; ++bit) remainder = (remainder >> 1) ^ ((remainder & 1) != 0 ? kPolynomial : 0);
    table[byte] = remainder;
  }
  return table;
}

constexpr std::array<std::uint32_t, 256> kCrcTable = make_crc_table();

// So that the CRC of a record that holds CRCs stays useful.
std::uint32_t masked_crc(std::string_view bytes) {
  const std::uint32_t crc = crc32c(bytes);
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

template <typename Integer>
std::string little_endian(Integer value) {
  std::string bytes;
  for (std::size_t i = 0; i < sizeof(value); ++i) bytes += static_cast<char>((value >> (8 * i)) & 0xff);
  return bytes;
}

double seconds_since_1970() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// Names sort by start, so that TensorBoard reads a resumed run's file after the older ones; no file is written over.
std::filesystem::path new_event_file(const std::filesystem::path& directory) {
  const auto now = static_cast<std::int64_t>(seconds_since_1970());
  for (int attempt = 0;; ++attempt) {
    std::filesystem::path path = directory / fmt::format("events.out.tfevents.{:010}.kvloom.{}", now, attempt);
    if (!std::filesystem::exists(path)) return path;
  }
}

}  // namespace

std::uint32_t crc32c(std::string_view bytes) {
  std::uint32_t crc = 0xffffffffu;
  for (const char c : bytes) crc = (crc >> 8) ^ kCrcTable[(crc ^ static_cast<unsigned char>(c)) & 0xff];
  return ~crc;
}

std::string tf_record(std::string_view bytes) {
  std::string record = little_endian(static_cast<std::uint64_t>(bytes.size()));
  record += little_endian(masked_crc(record));
  record += bytes;
  record += little_endian(masked_crc(bytes));
  return record;
}

TensorboardWriter::TensorboardWriter(const std::filesystem::path& directory, std::uint64_t resumed_step) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) fail("{}: cannot make this directory: {}", directory.string(), error.message());
  path_ = new_event_file(directory);
  file_.reset(std::fopen(path_.c_str(), "wxe"));
  if (file_ == nullptr) fail("{}: cannot write: {}", path_.string(), std::strerror(errno));
  proto::tensorboard::Event event;
  event.set_wall_time(seconds_since_1970());
  event.set_file_version("brain.Event:2");
  append(event);
  proto::tensorboard::Event start;
  start.set_wall_time(event.wall_time());
  start.set_step(resumed_step == 0 ? 0 : static_cast<std::int64_t>(resumed_step) + 1);
  start.mutable_session_log()->set_status(proto::tensorboard::SessionLog::START);
  append(start);
}

void TensorboardWriter::write(const StepMetrics& metrics) {
  std::map<std::string, double> scalars = metrics.more;
  scalars["loss"] = metrics.loss;
  scalars["learning_rate"] = metrics.learning_rate;
  scalars["grad_norm"] = metrics.grad_norm;
  scalars["tokens_per_second"] = metrics.tokens_per_second;
  write(metrics.step, scalars);
}

void TensorboardWriter::write(const EvaluationMetrics& metrics) { write(metrics.step, fields_of(metrics)); }

void TensorboardWriter::write(std::uint64_t step, const std::map<std::string, double>& scalars) {
  proto::tensorboard::Event event;
  event.set_wall_time(seconds_since_1970());
  event.set_step(static_cast<std::int64_t>(step));
  for (const auto& [name, value] : scalars) {
    proto::tensorboard::Summary::Value& scalar = *event.mutable_summary()->add_value();
    scalar.set_tag(name);
    scalar.set_simple_value(static_cast<float>(value));
  }
  append(event);
}

void TensorboardWriter::append(const proto::tensorboard::Event& event) {
  const std::string record = tf_record(event.SerializeAsString());
  const bool written =
      std::fwrite(record.data(), 1, record.size(), file_.get()) == record.size() && std::fflush(file_.get()) == 0;
  if (!written) fail("{}: cannot write: {}", path_.string(), std::strerror(errno));
}

}  // namespace kvloom
