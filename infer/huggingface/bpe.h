// Byte-pair encoding: from words to ids by the ranks of merges.
#pragma once

#include <array>
#include <bitset>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "infer/huggingface/byte_alphabet.h"
#include "infer/huggingface/json_node.h"
#include "infer/huggingface/pair_table.h"
#include "infer/huggingface/vocabulary.h"
#include "infer/huggingface/word_cache.h"

namespace kvloom::huggingface {

enum class BpeUnits {
  kCharacters,  // words are texts
  kBytes,       // words are bytes, which the vocabulary writes in GPT-2's alphabet; it has all 256
};

class Bpe {
 public:
  // What encoding needs to write; one for each thread.
  struct Scratch {
    WordCache cache;
    std::vector<std::int32_t> symbols;
    std::vector<PairTable::Merge> merges;
    std::vector<std::int32_t> next;
    std::vector<std::int32_t> previous;
    std::vector<std::uint64_t> queue;
  };

  // The `model` of a tokenizer.json. Dropout, continuing_subword_prefix and end_of_word_suffix are refused.
  explicit Bpe(const JsonNode& model);

  const Vocabulary& vocabulary() const { return vocabulary_; }
  // Whether the vocabulary has all 256 characters of GPT-2's alphabet.
  bool has_all_bytes() const { return has_all_bytes_; }

  // Appends the ids of a word. Characters that neither the vocabulary, nor its bytes, nor its unknown token cover have
  // none.
  void encode(std::string_view word, BpeUnits units, Scratch& scratch, std::vector<std::int32_t>& ids) const;

 private:
  void read_merges(const JsonNode& node);
  void read_fallback(const JsonNode& model);
  void read_bytes();

  void encode_uncut(std::string_view word, BpeUnits units, Scratch& scratch, std::vector<std::int32_t>& ids) const;
  void encode_cut(std::string_view text, Scratch& scratch, std::vector<std::int32_t>& ids) const;
  void compute(std::string_view word, BpeUnits units, Scratch& scratch, std::vector<std::int32_t>& ids) const;
  std::int32_t whole_word(std::string_view word, BpeUnits units) const;
  void characters_to_symbols(std::string_view word, std::vector<std::int32_t>& symbols) const;
  std::int32_t id_of_character(std::string_view character) const;
  void merge(Scratch& scratch) const;
  void merge_many(Scratch& scratch) const;

  // Kinds of characters, told apart by what may stand side by side in a token: ASCII's, U+2581, all others.
  static constexpr std::size_t kKinds = 130;

  Vocabulary vocabulary_;
  PairTable pairs_;
  bool ignore_merges_ = false;
  bool fuse_unknown_ = false;
  std::int32_t unknown_ = -1;
  bool has_all_bytes_ = false;
  std::array<std::int32_t, 256> fallback_{};                      // ids of "<0x00>" and so on; -1: none
  std::array<std::int32_t, 256> bytes_{};                         // ids of GPT-2's alphabet
  std::array<std::int32_t, 128> ascii_{};                         // ids of the characters
  std::unordered_map<std::string, std::int32_t> words_in_bytes_;  // for ignore_merges with bytes
  bool cuts_ = false;  // whether texts of characters are cut where no merge joins: short words, which repeat
  std::bitset<kKinds * kKinds> joined_;  // which kinds stand side by side in a token that merges make
};

}  // namespace kvloom::huggingface
