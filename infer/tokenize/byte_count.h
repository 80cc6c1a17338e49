// Lines such as "encoded 12.0 MiB of 40.0 MiB".
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <functional>
#include <string>
#include <utility>

#include "core/quantity_text.h"

namespace kvloom {

// Says after each step how much of all that is to be read it has reached.
class ByteCount {
 public:
  // `show` may be empty.
  ByteCount(std::function<void(const std::string&)> show, std::string what, std::uint64_t total)
      : show_(std::move(show)), what_(std::move(what)), total_(total) {}

  void add(std::uint64_t bytes) {
    done_ += bytes;
    if (!show_) return;
    show_(fmt::format("{} {} of {}", what_, format_bytes(static_cast<double>(done_)),
                      format_bytes(static_cast<double>(total_))));
  }

 private:
  std::function<void(const std::string&)> show_;
  std::string what_;
  std::uint64_t total_;
  std::uint64_t done_ = 0;
};

}  // namespace kvloom
