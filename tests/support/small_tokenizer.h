// A tokenizer.json small enough to read and to damage.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "infer/huggingface/byte_alphabet.h"
#include "infer/tokenizer.h"
#include "proto/tokenizer.pb.h"

namespace kvloom::test {

inline nlohmann::json added_token(int id, const std::string& content, bool special = true) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", special}};
}

// Characters, and the words that the merges make of them.
inline nlohmann::json character_tokenizer() {
  nlohmann::json vocab;
  for (const char* token : {"<unk>", "</s>", "a", "b", "c", "▁", "ab", "abc", "▁a", "é", "的"}) {
    vocab[token] = vocab.size();
  }
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", {added_token(0, "<unk>"), added_token(1, "</s>"), added_token(11, "<x>", false)}},
          {"normalizer", {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "▁"}}},
          {"pre_tokenizer", nullptr},
          {"post_processor",
           {{"type", "TemplateProcessing"},
            {"single",
             {{{"Sequence", {{"id", "A"}, {"type_id", 0}}}}, {{"SpecialToken", {{"id", "</s>"}, {"type_id", 0}}}}}},
            {"pair", nlohmann::json::array()},
            {"special_tokens", {{"</s>", {{"id", "</s>"}, {"ids", {1}}, {"tokens", {"</s>"}}}}}}}},
          {"decoder", {{"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", "always"}}},
          {"model",
           {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", "<unk>"},
            {"continuing_subword_prefix", nullptr},
            {"end_of_word_suffix", nullptr},
            {"fuse_unk", true},
            {"byte_fallback", false},
            {"ignore_merges", false},
            {"vocab", vocab},
            {"merges", {"a b", "ab c", {"▁", "a"}}}}}};
}

// The 256 bytes and GPT-2's words.
inline nlohmann::json byte_level_tokenizer() {
  nlohmann::json json = character_tokenizer();
  const huggingface::ByteAlphabet alphabet;
  nlohmann::json vocab;
  for (int byte = 0; byte < 256; ++byte) {
    vocab[alphabet.characters_of(std::string(1, static_cast<char>(byte)))] = byte;
  }
  vocab["ab"] = 256;
  vocab["Ġab"] = 257;
  json["model"]["vocab"] = vocab;
  json["model"]["merges"] = {"a b", "Ġ ab"};
  json["model"]["unk_token"] = nullptr;
  json["added_tokens"] = {added_token(258, "<|endoftext|>")};
  json["normalizer"] = {{"type", "NFC"}};
  json["pre_tokenizer"] = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}};
  json["post_processor"] = {{"type", "ByteLevel"}, {"trim_offsets", false}};
  json["decoder"] = {{"type", "ByteLevel"}};
  return json;
}

inline std::string packed_tokenizer(const std::string& json, const std::string& config = "") {
  proto::TokenizerFiles files;
  proto::TokenizerFiles::File& file = *files.add_files();
  file.set_name("tokenizer.json");
  file.set_content(json);
  if (!config.empty()) {
    proto::TokenizerFiles::File& beside = *files.add_files();
    beside.set_name("tokenizer_config.json");
    beside.set_content(config);
  }
  return files.SerializeAsString();
}

inline std::unique_ptr<Tokenizer> tokenizer_from(const nlohmann::json& json, const std::string& config = "") {
  return make_tokenizer("huggingface", packed_tokenizer(json.dump(), config), "test");
}

}  // namespace kvloom::test
