// TensorBoard event files: the scalars of each step, for those who watch training with it.
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include "proto/tensorboard.pb.h"
#include "train/metrics.h"

namespace kvloom {

// CRC-32C (Castagnoli), as iSCSI has it (RFC 3720, appendix B.4).
std::uint32_t crc32c(std::string_view bytes);

// `bytes` as a TFRecord: u64 length, masked CRC of the length, bytes, masked CRC of the bytes, little-endian.
std::string tf_record(std::string_view bytes);

class TensorboardWriter {
 public:
  // Begins a new event file in `directory`, made when it is not there. TensorBoard reads all event files of a directory
  // as one run. The file's second event says that the run starts with the first step after `resumed_step`, or anew when
  // that is 0: SessionLog START, at which TensorBoard drops what it has read of that step and later ones
  // (event_processing/event_accumulator.py, _CheckForRestartAndMaybePurge). Throws Error naming the file when it cannot
  // be written.
  TensorboardWriter(const std::filesystem::path& directory, std::uint64_t resumed_step);

  const std::filesystem::path& path() const { return path_; }

  // Every field of the metrics as a scalar of its name. The event is with the operating system when this returns.
  // Throws Error naming the file when it cannot be written.
  void write(const StepMetrics& metrics);
  void write(const EvaluationMetrics& metrics);

 private:
  struct CloseFile {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };

  void write(std::uint64_t step, const std::map<std::string, double>& scalars);
  void append(const proto::tensorboard::Event& event);

  std::filesystem::path path_;
  std::unique_ptr<std::FILE, CloseFile> file_;
};

}  // namespace kvloom
