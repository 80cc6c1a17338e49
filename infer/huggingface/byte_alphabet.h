// GPT-2's alphabet: a printable character for each of the 256 bytes (github.com/openai/gpt-2, src/encoder.py).
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>

namespace kvloom::huggingface {

class ByteAlphabet {
 public:
  ByteAlphabet();

  // Every byte as its character.
  std::string characters_of(std::string_view bytes) const;
  // The bytes behind the characters; none where one stands for no byte.
  std::optional<std::string> bytes_of(std::string_view characters) const;

 private:
  std::array<std::string, 256> characters_;
  std::array<int, 324> bytes_;  // by character; -1: none
};

}  // namespace kvloom::huggingface
