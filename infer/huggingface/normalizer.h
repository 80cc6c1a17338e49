// The normalizers of a tokenizer.json: NFC, NFD, NFKC, NFKD, Lowercase, Strip, StripAccents, Nmt, Prepend, Replace,
// ByteLevel and Sequence. Others are refused by name.
#pragma once

#include <memory>
#include <string>

#include "infer/huggingface/json_node.h"
#include "infer/place.h"

namespace kvloom::huggingface {

class Normalizer {
 public:
  virtual ~Normalizer() = default;
  // `place`: whether the text is a document's start. In its middle nothing is put before it.
  virtual void apply(std::string& text, Place place) const = 0;
};

std::unique_ptr<Normalizer> read_normalizer(const JsonNode& node);

}  // namespace kvloom::huggingface
