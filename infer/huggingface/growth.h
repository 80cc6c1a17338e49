// A tokenizer.json whose steps multiply a text is refused before it fills the memory.
#pragma once

#include <cstddef>

#include "kernels/error.h"

namespace kvloom::huggingface {

inline void check_growth(std::size_t bytes_before, std::size_t bytes_after) {
  if (bytes_after > 64 * bytes_before + 65536) {
    reject_input("tokenizer.json: its steps make {} bytes of a text of {}; right is 64 times as many at most",
                 bytes_after, bytes_before);
  }
}

}  // namespace kvloom::huggingface
