#include "infer/tokenizer.h"

#include <utility>

#include "kernels/error.h"

namespace kvloom {
namespace {

class ByteTokenizer final : public Tokenizer {
 public:
  using Tokenizer::encode;

  std::string kind() const override { return "bytes"; }
  std::string serialized() const override { return {}; }
  std::int64_t vocab() const override { return 257; }
  std::int32_t separator() const override { return 256; }
  void encode(std::string_view text, std::vector<std::int32_t>& ids) const override {
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
  }
  std::string bytes_of(std::int32_t id) const override {
    if (id < 0 || id >= vocab()) reject_input("tokenizer: id {}; right are 0 to {}", id, vocab() - 1);
    return id == separator() ? std::string() : std::string(1, static_cast<char>(id));
  }
};

// How many bytes a UTF-8 character with this first byte has; 1 for what cannot start one.
std::size_t character_length(unsigned char first) {
  if (first >= 0xf0 && first < 0xf8) return 4;
  if (first >= 0xe0) return first < 0xf0 ? 3 : 1;
  return first >= 0xc2 ? 2 : 1;
}

// The length of the longest prefix that no further byte can change: all but an unfinished last character.
std::size_t finished_prefix(std::string_view text) {
  for (std::size_t back = 1; back <= 3 && back <= text.size(); ++back) {
    const auto byte = static_cast<unsigned char>(text[text.size() - back]);
    if ((byte & 0xc0) == 0x80) continue;
    return character_length(byte) > back ? text.size() - back : text.size();
  }
  return text.size();
}

}  // namespace

std::vector<std::int32_t> Tokenizer::encode(std::string_view text) const {
  std::vector<std::int32_t> ids;
  encode(text, ids);
  return ids;
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids) const {
  std::string text;
  for (const std::int32_t id : ids) text += bytes_of(id);
  return text;
}

std::string StreamDecoder::push(std::int32_t id) {
  pending_ += tokenizer_.bytes_of(id);
  const std::size_t length = finished_prefix(pending_);
  std::string ready = pending_.substr(0, length);
  pending_.erase(0, length);
  return ready;
}

std::string StreamDecoder::finish() { return std::exchange(pending_, {}); }

std::unique_ptr<Tokenizer> make_byte_tokenizer() { return std::make_unique<ByteTokenizer>(); }

}  // namespace kvloom
