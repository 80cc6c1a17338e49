#include "infer/huggingface/byte_alphabet.h"

#include "infer/unicode.h"

namespace kvloom::huggingface {

ByteAlphabet::ByteAlphabet() {
  bytes_.fill(-1);
  char32_t next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xff && byte != 0xad);
    const char32_t code = printable ? static_cast<char32_t>(byte) : next++;
    append_character(characters_[static_cast<std::size_t>(byte)], code);
    bytes_[code] = byte;
  }
}

std::string ByteAlphabet::characters_of(std::string_view bytes) const {
  std::string characters;
  for (const char byte : bytes) characters += characters_[static_cast<unsigned char>(byte)];
  return characters;
}

std::optional<std::string> ByteAlphabet::bytes_of(std::string_view characters) const {
  std::string bytes;
  while (!characters.empty()) {
    const Character character = first_character(characters);
    if (character.code >= bytes_.size() || bytes_[character.code] < 0) return std::nullopt;
    bytes += static_cast<char>(bytes_[character.code]);
    characters.remove_prefix(character.bytes);
  }
  return bytes;
}

}  // namespace kvloom::huggingface
