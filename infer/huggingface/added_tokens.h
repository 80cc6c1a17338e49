// The `added_tokens` of a tokenizer.json: texts that are one id each, found before anything else is done.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "infer/huggingface/json_node.h"
#include "infer/huggingface/normalizer.h"
#include "infer/huggingface/token_trie.h"
#include "infer/huggingface/vocabulary.h"
#include "infer/regex.h"

namespace kvloom::huggingface {

struct AddedToken {
  std::int32_t id = -1;
  std::string content;
  bool single_word = false;  // no letter or digit stands beside it
  bool lstrip = false;       // takes the white space before it
  bool rstrip = false;       // and behind it
  bool normalized = false;   // looked for, in its normalized form, in the normalized text
  bool special = false;      // has no text when decoded
};

// A stretch of a text: an added token, or what lies between.
struct Stretch {
  Span span;
  std::int32_t id = -1;  // -1: no token
};

class AddedTokens {
 public:
  AddedTokens() = default;
  // Refuses ids that the reference would not give: a token of the vocabulary keeps its id, others count on from it.
  AddedTokens(const JsonNode& node, const Vocabulary& vocabulary, const Normalizer* normalizer);

  // Appends the stretches that the text consists of. The longest of the leftmost tokens is taken.
  void cut_raw(std::string_view text, std::vector<Stretch>& stretches) const { cut(raw_, text, stretches); }
  void cut_normalized(std::string_view text, std::vector<Stretch>& stretches) const {
    cut(normalized_, text, stretches);
  }
  bool has_normalized() const { return !normalized_.empty(); }

  const AddedToken* find(std::int32_t id) const;
  const AddedToken* find(std::string_view content) const;
  std::int32_t size() const { return size_; }  // one more than the largest id; 0 without tokens

 private:
  void add(AddedToken token, const JsonNode& node, const Vocabulary& vocabulary, const Normalizer* normalizer);
  void cut(const TokenTrie& trie, std::string_view text, std::vector<Stretch>& stretches) const;
  bool stands_alone(std::string_view text, Span span) const;
  bool is_word(std::string_view character) const;

  std::unordered_map<std::int32_t, AddedToken> tokens_;
  std::unordered_map<std::string, std::int32_t> ids_;
  TokenTrie raw_;
  TokenTrie normalized_;
  std::optional<Regex> word_;  // one character of a word; where a token asks for it
  std::int32_t size_ = 0;
};

}  // namespace kvloom::huggingface
