#include "infer/tokenizer.h"

#include <utility>

#include "infer/tokenizer_kinds.h"
#include "infer/unicode.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

class ByteTokenizer final : public Tokenizer {
 public:
  using Tokenizer::bytes_of;
  using Tokenizer::encode;

  std::string kind() const override { return "bytes"; }
  std::string serialized() const override { return {}; }
  std::int64_t vocab() const override { return 257; }
  std::int32_t separator() const override { return 256; }
  bool joins_characters() const override { return false; }
  void encode(std::string_view text, Place, std::vector<std::int32_t>& ids) const override {
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
  }
  std::string bytes_of(std::int32_t id, Place) const override {
    if (id < 0 || id >= vocab()) reject_input("tokenizer: id {}; right are 0 to {}", id, vocab() - 1);
    return id == separator() ? std::string() : std::string(1, static_cast<char>(id));
  }
};

}  // namespace

std::int32_t Tokenizer::prefix_id() const {
  const std::vector<std::int32_t> start = start_ids();
  return start.empty() ? separator() : start.front();
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text) const {
  std::vector<std::int32_t> ids;
  encode(text, ids);
  return ids;
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids) const {
  std::string text;
  Place place = Place::kStart;
  for (const std::int32_t id : ids) {
    text += bytes_of(id, place);
    if (!bytes_of(id).empty()) place = Place::kMiddle;
  }
  return text;
}

std::string StreamDecoder::push(std::int32_t id) {
  pending_ += tokenizer_.bytes_of(id, place_);
  if (!tokenizer_.bytes_of(id).empty()) place_ = Place::kMiddle;
  const std::size_t length = finished_prefix(pending_);
  std::string ready = pending_.substr(0, length);
  pending_.erase(0, length);
  return tokenizer_.decodes_to_utf8() ? replace_ill_formed(ready) : ready;
}

std::string StreamDecoder::finish() {
  const std::string rest = std::exchange(pending_, {});
  return tokenizer_.decodes_to_utf8() ? replace_ill_formed(rest) : rest;
}

std::unique_ptr<Tokenizer> make_tokenizer(const std::string& kind, const std::string& serialized,
                                          const std::string& where) {
  if (kind == "bytes") return make_byte_tokenizer();
  if (kind == "sentencepiece") return make_sentencepiece(serialized, where);
  if (kind == "huggingface") return make_huggingface(serialized, where);
  if (kind.empty()) reject_input("{}: carries no tokenizer", where);
  reject_input("{}: tokenizer of kind '{}'; this kvloom knows bytes, sentencepiece and huggingface", where, kind);
}

std::unique_ptr<Tokenizer> make_byte_tokenizer() { return std::make_unique<ByteTokenizer>(); }

}  // namespace kvloom
