#include "infer/tokenizer_export.h"

#include <sentencepiece_processor.h>

#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "infer/huggingface/byte_alphabet.h"
#include "infer/unicode.h"
#include "kernels/error.h"
#include "proto/sentencepiece.pb.h"

namespace kvloom {
namespace {

using Json = nlohmann::ordered_json;
using sentencepiece::SentencePieceProcessor;

constexpr const char* kSpace = "\xe2\x96\x81";  // U+2581, how pieces write a space
constexpr const char* kEndOfBytes = "<|endoftext|>";

Json added_token(int id, const std::string& content, bool special) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", special}};
}

Json replace(const std::string& from, const std::string& to) {
  return {{"type", "Replace"}, {"pattern", {{"String", from}}}, {"content", to}};
}

Json tokenizer_json(Json added, Json normalizer, Json pre_tokenizer, Json decoder, Json model) {
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", std::move(added)},
          {"normalizer", std::move(normalizer)},
          {"pre_tokenizer", std::move(pre_tokenizer)},
          {"post_processor", nullptr},
          {"decoder", std::move(decoder)},
          {"model", std::move(model)}};
}

Json bpe(Json vocabulary, Json merges, bool byte_fallback, const Json& unknown) {
  return {{"type", "BPE"},
          {"dropout", nullptr},
          {"unk_token", unknown},
          {"continuing_subword_prefix", nullptr},
          {"end_of_word_suffix", nullptr},
          {"fuse_unk", false},
          {"byte_fallback", byte_fallback},
          {"ignore_merges", false},
          {"vocab", std::move(vocabulary)},
          {"merges", std::move(merges)}};
}

Json configuration(const std::string& kind, const std::string& family) {
  return {{"tokenizer_class", family},
          {"add_bos_token", false},
          {"add_eos_token", false},
          {"add_prefix_space", false},
          {"clean_up_tokenization_spaces", false},
          {"kvloom", {{"tokenizer", kind}}}};
}

std::string text_of(const Json& json) { return json.dump(2) + "\n"; }

// Every byte is its character of GPT-2's alphabet.
ExportedTokenizer export_bytes() {
  const huggingface::ByteAlphabet alphabet;
  Json vocabulary = Json::object();
  for (int byte = 0; byte < 256; ++byte) {
    vocabulary[alphabet.characters_of(std::string(1, static_cast<char>(byte)))] = byte;
  }
  const Json level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", false}, {"use_regex", false}};
  const Json json = tokenizer_json(Json::array({added_token(256, kEndOfBytes, true)}), nullptr, level, level,
                                   bpe(std::move(vocabulary), Json::array(), false, nullptr));
  Json config = configuration("bytes", "PreTrainedTokenizerFast");
  config["eos_token"] = kEndOfBytes;
  return {{{std::string(kTokenizerJson), text_of(json)}, {std::string(kTokenizerConfig), text_of(config)}}, {}};
}

using Model = proto::SentencePieceModel;

enum class PieceType : std::uint32_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4 };

PieceType type_of(const Model::Piece& piece) {
  return piece.has_type() ? static_cast<PieceType>(piece.type()) : PieceType::kNormal;
}

// Of all neighbours that make a piece, SentencePiece joins those that make the best one. As BPE that is a rule for each
// way in which a piece consists of two, the best pieces' rules first.
Json merges_of(const Model& model) {
  struct Rule {
    float score;
    int left;
    int right;
  };
  std::unordered_map<std::string, int> ids;
  for (int id = 0; id < model.pieces_size(); ++id) {
    if (type_of(model.pieces(id)) == PieceType::kNormal) ids.emplace(model.pieces(id).piece(), id);
  }
  std::vector<Rule> rules;
  for (const auto& [piece, id] : ids) {
    const std::string_view text = piece;
    for (std::size_t cut = first_character(text).bytes; cut < text.size();
         cut += first_character(text.substr(cut)).bytes) {
      const auto left = ids.find(piece.substr(0, cut));
      const auto right = ids.find(piece.substr(cut));
      if (left != ids.end() && right != ids.end()) {
        rules.push_back({model.pieces(id).score(), left->second, right->second});
      }
    }
  }
  std::ranges::sort(rules, [](const Rule& a, const Rule& b) {
    return std::tuple(-a.score, a.left, a.right) < std::tuple(-b.score, b.left, b.right);
  });
  Json merges = Json::array();
  for (const Rule& rule : rules) {
    merges.push_back({model.pieces(rule.left).piece(), model.pieces(rule.right).piece()});
  }
  return merges;
}

Json sentencepiece_json(const Model& model, bool has_prefix) {
  Json vocabulary = Json::object();
  Json added = Json::array();
  Json unknown = nullptr;
  for (int id = 0; id < model.pieces_size(); ++id) {
    const std::string& piece = model.pieces(id).piece();
    const PieceType type = type_of(model.pieces(id));
    vocabulary[piece] = id;
    if (type == PieceType::kUnknown) unknown = piece;
    const bool special = type == PieceType::kUnknown || type == PieceType::kControl;
    if (special || type == PieceType::kUserDefined) added.push_back(added_token(id, piece, special));
  }
  Json steps = Json::array();
  if (has_prefix) steps.push_back({{"type", "Prepend"}, {"prepend", kSpace}});
  steps.push_back(replace(" ", kSpace));
  Json decoders = Json::array({replace(kSpace, " "), {{"type", "ByteFallback"}}, {{"type", "Fuse"}}});
  if (has_prefix) decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  return tokenizer_json(std::move(added), {{"type", "Sequence"}, {"normalizers", std::move(steps)}}, nullptr,
                        {{"type", "Sequence"}, {"decoders", std::move(decoders)}},
                        bpe(std::move(vocabulary), merges_of(model), model.trainer_spec().byte_fallback(), unknown));
}

// Why a model's ids are not those of any tokenizer.json that is written here; empty if they are.
std::string obstacle(const Model& model) {
  const Model::Trainer& trainer = model.trainer_spec();
  const Model::Normalizer& normalizer = model.normalizer_spec();
  const auto is_set = [](bool has, bool value) { return !has || value; };
  constexpr std::uint32_t kBpe = 2;
  if (trainer.model_type() != kBpe) return "the SentencePiece model is no BPE";
  if (!normalizer.precompiled_charsmap().empty()) return "the SentencePiece model normalizes texts";
  if (is_set(normalizer.has_remove_extra_whitespaces(), normalizer.remove_extra_whitespaces())) {
    return "the SentencePiece model removes spaces";
  }
  if (!is_set(normalizer.has_escape_whitespaces(), normalizer.escape_whitespaces()) ||
      trainer.treat_whitespace_as_suffix()) {
    return "the SentencePiece model writes spaces in its own way";
  }
  const bool has_spaced = std::ranges::any_of(model.pieces(), [](const Model::Piece& piece) {
    return type_of(piece) == PieceType::kUserDefined && piece.piece().find(kSpace) != std::string::npos;
  });
  if (has_spaced) return "the SentencePiece model has user-defined pieces with spaces";
  return {};
}

ExportedTokenizer export_sentencepiece(const std::string& content, const std::string& where) {
  SentencePieceProcessor processor;
  Model model;
  if (!processor.LoadFromSerializedProto(content).ok() || !model.ParseFromString(content)) {
    reject_input("{}: holds no SentencePiece model", where);
  }
  ExportedTokenizer exported{{{std::string(kTokenizerModel), content}}, obstacle(model)};
  const Model::Normalizer& normalizer = model.normalizer_spec();
  const bool has_prefix = !normalizer.has_add_dummy_prefix() || normalizer.add_dummy_prefix();
  if (exported.missing.empty()) {
    exported.files.push_back({std::string(kTokenizerJson), text_of(sentencepiece_json(model, has_prefix))});
  }
  Json config = configuration("sentencepiece", exported.missing.empty() ? "PreTrainedTokenizerFast" : "LlamaTokenizer");
  const auto name = [&](const char* field, int id) {
    if (id >= 0) config[field] = processor.IdToPiece(id);
  };
  name("bos_token", processor.bos_id());
  name("eos_token", processor.eos_id());
  name("unk_token", processor.unk_id());
  if (has_prefix) config["add_prefix_space"] = true;
  exported.files.push_back({std::string(kTokenizerConfig), text_of(config)});
  return exported;
}

}  // namespace

ExportedTokenizer export_tokenizer(const CarriedTokenizer& tokenizer, const std::string& where) {
  if (tokenizer.kind == "bytes") return export_bytes();
  if (tokenizer.kind == "sentencepiece") return export_sentencepiece(tokenizer.content, where);
  return {};
}

}  // namespace kvloom
