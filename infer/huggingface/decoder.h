// The decoder of a tokenizer.json: ByteLevel, ByteFallback, Metaspace, Replace, Fuse, Strip, BPEDecoder and Sequence.
// Others are refused by name. Without one, a space stands between tokens.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "infer/huggingface/json_node.h"
#include "infer/place.h"

namespace kvloom::huggingface {

class DecoderStep {
 public:
  virtual ~DecoderStep() = default;
  // All tokens of a text.
  virtual void apply(std::vector<std::string>& tokens) const = 0;
  // One token as it stands in running text: the bytes, even where they are no whole character. At kStart it is the
  // first of its text.
  virtual void apply(std::string& token, Place place) const = 0;
};

class Decoder {
 public:
  // With nullptr: tokens with spaces between.
  explicit Decoder(const JsonNode* node);

  std::string whole(std::vector<std::string> tokens) const;
  std::string piece(std::string token, Place place) const;

 private:
  void read(const JsonNode& node);

  std::vector<std::unique_ptr<DecoderStep>> steps_;
  bool fused_ = false;  // while reading: the steps so far leave one text
};

}  // namespace kvloom::huggingface
