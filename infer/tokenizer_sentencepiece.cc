#include <fmt/ranges.h>
#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <algorithm>
#include <mutex>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "core/convert/json_fields.h"
#include "core/file.h"
#include "core/git_lfs.h"
#include "infer/huggingface/added_tokens.h"
#include "infer/huggingface/settings.h"
#include "infer/huggingface/vocabulary.h"
#include "infer/text_cut.h"
#include "infer/tokenizer.h"
#include "infer/tokenizer_kinds.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

constexpr std::uint64_t kLargestModel = std::uint64_t{256} << 20;
constexpr std::string_view kSpace = "\xe2\x96\x81";  // U+2581, how pieces write a space

// The same model without the space that it may put before a text. A later field of a message replaces an earlier one:
// this is ModelProto's normalizer_spec with add_dummy_prefix false.
std::string without_dummy_prefix(const std::string& model) { return model + std::string("\x1a\x02\x18\x00", 4); }

void load(sentencepiece::SentencePieceProcessor& processor, const std::string& model, const std::string& where) {
  const auto status = processor.LoadFromSerializedProto(model);
  if (!status.ok() || processor.GetPieceSize() == 0) {
    reject_input("{}: is no SentencePiece model: {}", where, status.ok() ? "it has no pieces" : status.message());
  }
}

class SentencePieceTokenizer : public Tokenizer {
 public:
  SentencePieceTokenizer(std::string model, const std::string& where) : model_(std::move(model)), where_(where) {
    refuse_git_lfs(model_, where);
    load(processor_, model_, where);
    for (int id = 0; id < processor_.GetPieceSize(); ++id) pieces_.push_back(text_of(id));
  }

  using Tokenizer::bytes_of;
  using Tokenizer::encode;

  std::string kind() const override { return "sentencepiece"; }
  std::string serialized() const override { return model_; }
  std::vector<NamedFile> files() const override { return {{"tokenizer.model", model_}}; }
  std::int64_t vocab() const override { return processor_.GetPieceSize(); }
  // The end of a sentence where the model has one, else its start, else the unknown id.
  std::int32_t separator() const override {
    if (processor_.eos_id() >= 0) return processor_.eos_id();
    return processor_.bos_id() >= 0 ? processor_.bos_id() : std::max(0, processor_.unk_id());
  }
  void encode(std::string_view text, Place place, std::vector<std::int32_t>& ids) const override {
    std::vector<int> found;
    const auto status = (place == Place::kStart ? processor_ : middle()).Encode(text, &found);
    if (!status.ok()) fail("tokenizer: SentencePiece cannot encode {} bytes: {}", text.size(), status.message());
    ids.insert(ids.end(), found.begin(), found.end());
  }
  std::string bytes_of(std::int32_t id, Place) const override {
    if (id < 0 || id >= vocab()) reject_input("tokenizer: id {}; right are 0 to {}", id, vocab() - 1);
    return pieces_[static_cast<std::size_t>(id)];
  }

 protected:
  const sentencepiece::SentencePieceProcessor& processor() const { return processor_; }

 private:
  std::string text_of(int id) const {
    if (processor_.IsControl(id) || processor_.IsUnknown(id) || processor_.IsUnused(id)) return {};
    const std::string& piece = processor_.IdToPiece(id);
    if (processor_.IsByte(id)) return std::string(1, static_cast<char>(std::stoi(piece.substr(3, 2), nullptr, 16)));
    std::string text;
    for (std::size_t at = 0; at < piece.size();) {
      const bool space = std::string_view(piece).substr(at).starts_with(kSpace);
      text += space ? ' ' : piece[at];
      at += space ? kSpace.size() : 1;
    }
    return text;
  }

  // Of text that goes on. Few need it.
  const sentencepiece::SentencePieceProcessor& middle() const {
    std::call_once(middle_loaded_, [this] { load(middle_, without_dummy_prefix(model_), where_); });
    return middle_;
  }

  std::string model_;
  std::string where_;
  sentencepiece::SentencePieceProcessor processor_;
  mutable std::once_flag middle_loaded_;
  mutable sentencepiece::SentencePieceProcessor middle_;
  std::vector<std::string> pieces_;
};

// As its tokenizer_config.json has it. As in transformers, the texts of special and added tokens are those tokens.
class ConfiguredSentencePiece final : public SentencePieceTokenizer {
 public:
  ConfiguredSentencePiece(std::vector<NamedFile> files, const std::string& where)
      : SentencePieceTokenizer(*content_of(files, kTokenizerModel), where),
        files_(std::move(files)),
        settings_(huggingface::read_settings(files_, where)),
        added_(added_tokens(where)) {
    const std::string place = fmt::format("{}: {}", where, kTokenizerConfig);
    const std::string* text = content_of(files_, kTokenizerConfig);
    if (text == nullptr) reject_input("{}: {} without {}", where, kTokenizerModel, kTokenizerConfig);
    const nlohmann::ordered_json object = parse_json_object(*text, place);
    JsonFields fields(object, place);
    const std::int32_t start = configured("bos_token", settings_.start, processor().bos_id());
    const std::int32_t end = configured("eos_token", settings_.end, processor().eos_id());
    const bool is_llama = settings_.family == "LlamaTokenizer";
    if (settings_.adds_start.value_or(is_llama) && start >= 0) before_ = {start};
    if (settings_.adds_end.value_or(false) && end >= 0) behind_ = {end};
    is_legacy_ = fields.boolean("legacy", true);
    separator_ = end >= 0 ? end : SentencePieceTokenizer::separator();
    if (settings_.adds_space == false) unheeded_.emplace_back("add_prefix_space");
    if (fields.has("sp_model_kwargs") && !object["sp_model_kwargs"].empty()) unheeded_.emplace_back("sp_model_kwargs");
  }

  std::string kind() const override { return "huggingface"; }
  std::string serialized() const override { return tokenizer_among(files_)->content; }
  std::vector<NamedFile> files() const override { return files_; }
  std::int64_t vocab() const override { return std::max<std::int64_t>(SentencePieceTokenizer::vocab(), added_.size()); }
  std::int32_t separator() const override { return separator_; }
  std::vector<std::int32_t> start_ids() const override { return before_; }
  std::vector<std::int32_t> end_ids() const override { return behind_; }
  std::string unheeded() const override {
    return unheeded_.empty() ? "" : fmt::format("{}: {}", kTokenizerConfig, fmt::join(unheeded_, ", "));
  }

  void encode(std::string_view text, Place place, std::vector<std::int32_t>& ids) const override {
    std::vector<huggingface::Stretch> stretches;
    added_.cut_raw(text, stretches);
    for (const huggingface::Stretch& stretch : stretches) {
      if (stretch.id >= 0) {
        ids.push_back(stretch.id);
        continue;
      }
      const std::string_view part = text.substr(stretch.span.begin, stretch.span.end - stretch.span.begin);
      SentencePieceTokenizer::encode(part, place_of(part, stretch.span.begin == 0, place), ids);
    }
  }
  std::string bytes_of(std::int32_t id, Place place) const override {
    const huggingface::AddedToken* token = added_.find(id);
    if (token == nullptr || id < SentencePieceTokenizer::vocab()) return SentencePieceTokenizer::bytes_of(id, place);
    return token->special ? std::string() : token->content;
  }

 private:
  // Where a space is put before a part, it is kStart: with "legacy" behind every token, else where the text starts, and
  // not before another space.
  Place place_of(std::string_view part, bool is_first, Place place) const {
    if (is_legacy_) return is_first ? place : Place::kStart;
    return is_first && !part.starts_with(' ') && !part.starts_with(kSpace) ? place : Place::kMiddle;
  }

  // The tokens that the settings name, with the model's ids or the next free ones.
  huggingface::AddedTokens added_tokens(const std::string& where) const {
    nlohmann::json pieces = nlohmann::json::object();
    for (std::int32_t id = 0; id < SentencePieceTokenizer::vocab(); ++id) pieces[processor().IdToPiece(id)] = id;
    nlohmann::json tokenizer = {{"model", {{"vocab", std::move(pieces)}}}};
    huggingface::add_tokens(settings_, tokenizer);
    for (nlohmann::json& token : tokenizer["added_tokens"]) token["normalized"] = false;
    const huggingface::JsonNode root(tokenizer, where);
    const huggingface::Vocabulary vocabulary(root.at("model").at("vocab"));
    return {root.at("added_tokens"), vocabulary, nullptr};
  }

  // The id of a special token that the configuration names, else the model's own.
  std::int32_t configured(const char* name, const std::optional<std::string>& content, int own) {
    if (!content) return own;
    const huggingface::AddedToken* token = added_.find(std::string_view(*content));
    if (token == nullptr) unheeded_.push_back(fmt::format("{} (no piece of {})", name, kTokenizerModel));
    return token == nullptr ? own : token->id;
  }

  std::vector<NamedFile> files_;
  huggingface::Settings settings_;
  huggingface::AddedTokens added_;
  std::vector<std::int32_t> before_;
  std::vector<std::int32_t> behind_;
  std::int32_t separator_ = 0;
  bool is_legacy_ = true;
  std::vector<std::string> unheeded_;
};

// The trainer leaves longer lines out.
constexpr std::size_t kLongestSentence = 16384;

// Where the next sentence of a line that is too long ends: behind a sentence, else before a word, else between
// characters.
std::size_t sentence_end(std::string_view line) {
  if (line.size() <= kLongestSentence) return line.size();
  const std::string_view longest = line.substr(0, kLongestSentence);
  for (const std::string_view mark : {". ", "! ", "? ", "。", "！", "？"}) {
    const std::size_t found = longest.rfind(mark);
    if (found != longest.npos && found >= kLongestSentence / 2) return found + (mark.back() == ' ' ? 1 : mark.size());
  }
  const std::size_t space = longest.rfind(' ');
  if (space != longest.npos && space > 0) return space;
  return character_cut(longest);
}

// Hands the trainer one line after another, the longest in sentences. Newlines are pieces of their own and not in it.
class Lines final : public sentencepiece::SentenceIterator {
 public:
  explicit Lines(const std::vector<std::string>& texts) : texts_(texts) { advance(); }

  bool done() const override { return done_; }
  void Next() override { advance(); }
  const std::string& value() const override { return line_; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  void advance() {
    while (text_ < texts_.size() && at_ >= texts_[text_].size()) {
      ++text_;
      at_ = 0;
    }
    done_ = text_ == texts_.size();
    if (done_) return;
    const std::string& text = texts_[text_];
    const std::size_t end = std::min(text.find('\n', at_), text.size());
    line_ = text.substr(at_, sentence_end(std::string_view(text).substr(at_, end - at_)));
    at_ += line_.size();
    if (at_ == end) ++at_;
  }

  const std::vector<std::string>& texts_;
  std::size_t text_ = 0;
  std::size_t at_ = 0;
  std::string line_;
  bool done_ = false;
};

}  // namespace

std::unique_ptr<Tokenizer> make_sentencepiece(const std::string& model, const std::string& where) {
  return std::make_unique<SentencePieceTokenizer>(model, where);
}

std::unique_ptr<Tokenizer> make_configured_sentencepiece(std::vector<NamedFile> files, const std::string& where) {
  return std::make_unique<ConfiguredSentencePiece>(std::move(files), where);
}

std::unique_ptr<Tokenizer> load_sentencepiece(const std::filesystem::path& path) {
  return std::make_unique<SentencePieceTokenizer>(read_file(path, kLargestModel), fmt::format("'{}'", path.string()));
}

std::string train_sentencepiece(const std::vector<std::string>& texts, const SentencePieceTraining& training) {
  if (training.vocab < 300 || training.vocab > 1'000'000) {
    reject_input("train-sentencepiece: a vocabulary of {}; right is 300 to 1000000 (256 of them are bytes)",
                 training.vocab);
  }
  const std::unordered_map<std::string, std::string> settings = {
      {"model_type", "bpe"},
      {"vocab_size", std::to_string(training.vocab)},
      {"byte_fallback", "true"},
      {"character_coverage", "0.9999"},
      // Text must come back byte for byte: nothing is normalised, joined or trimmed.
      {"normalization_rule_name", "identity"},
      {"remove_extra_whitespaces", "false"},
      {"add_dummy_prefix", "false"},
      {"allow_whitespace_only_pieces", "true"},
      {"split_digits", "true"},
      {"user_defined_symbols", "\n,\t"},
      {"max_sentence_length", std::to_string(kLongestSentence)},
      // A constant: the model records it, and must not depend on the machine.
      {"num_threads", "2"},
      {"minloglevel", "2"},
      {"bos_id", "1"},
      {"eos_id", "2"},
      {"unk_id", "0"},
      {"pad_id", "-1"},
  };
  Lines lines(texts);
  std::string model;
  const auto status = sentencepiece::SentencePieceTrainer::Train(settings, &lines, &model);
  if (!status.ok()) {
    const std::string reason = status.message();
    if (reason.find("required_chars") != std::string::npos) {
      reject_input("train-sentencepiece: a vocabulary of {} cannot hold the text's characters; right is a larger one",
                   training.vocab);
    }
    reject_input("train-sentencepiece: the text does not give {} pieces; right is a smaller vocabulary or more text",
                 training.vocab);
  }
  return model;
}

}  // namespace kvloom
