#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <mutex>
#include <optional>
#include <utility>

#include "core/file.h"
#include "core/git_lfs.h"
#include "infer/huggingface/added_tokens.h"
#include "infer/huggingface/bpe.h"
#include "infer/huggingface/decoder.h"
#include "infer/huggingface/post_processor.h"
#include "infer/huggingface/pre_tokenizer.h"
#include "infer/huggingface/settings.h"
#include "infer/tokenizer_kinds.h"
#include "infer/unicode.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

namespace fs = std::filesystem;
using namespace huggingface;

constexpr std::uint64_t kLargestFile = std::uint64_t{256} << 20;
// Where no configuration names it, the end of a text is the first of these that is an added token.
constexpr std::array<const char*, 5> kEnds = {"</s>", "<|end_of_text|>", "<|endoftext|>", "<eos>", "<|im_end|>"};

nlohmann::json parse_json(const std::string& text, const std::string& where) {
  refuse_git_lfs(text, where);
  try {
    return nlohmann::json::parse(text);
  } catch (const nlohmann::json::exception& error) {
    reject_input("{}: is no JSON: {}", where, error.what());
  }
}

// One for each thread that encodes.
struct Scratch {
  Bpe::Scratch bpe;
  Words words;
  std::vector<Stretch> raw;
  std::vector<Stretch> normalized;
};

// Lends what encoding writes to, so that caches live on from text to text.
class ScratchPool {
 public:
  class Lease {
   public:
    explicit Lease(ScratchPool& pool) : pool_(pool), scratch_(pool.take()) {}
    ~Lease() { pool_.give(std::move(scratch_)); }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    Scratch& operator*() const { return *scratch_; }

   private:
    ScratchPool& pool_;
    std::unique_ptr<Scratch> scratch_;
  };

 private:
  std::unique_ptr<Scratch> take() {
    const std::lock_guard lock(mutex_);
    if (idle_.empty()) return std::make_unique<Scratch>();
    auto scratch = std::move(idle_.back());
    idle_.pop_back();
    return scratch;
  }
  void give(std::unique_ptr<Scratch> scratch) {
    const std::lock_guard lock(mutex_);
    idle_.push_back(std::move(scratch));
  }

  std::mutex mutex_;
  std::vector<std::unique_ptr<Scratch>> idle_;
};

class HuggingFaceTokenizer final : public Tokenizer {
 public:
  HuggingFaceTokenizer(std::vector<NamedFile> files, const JsonNode& root, const Settings& settings,
                       std::vector<std::string> unheeded, const std::string& where)
      : files_(std::move(files)),
        unheeded_(std::move(unheeded)),
        normalizer_(root.has("normalizer") ? read_normalizer(root.at("normalizer")) : nullptr),
        bpe_(root.at("model")),
        added_(root.has("added_tokens") ? AddedTokens(root.at("added_tokens"), bpe_.vocabulary(), normalizer_.get())
                                        : AddedTokens()),
        decoder_(read_decoder(root)) {
    if (root.text_or("version", "1.0") != "1.0") root.at("version").reject("right is '1.0'");
    if (root.has("pre_tokenizer")) pre_tokenizers_ = read_pre_tokenizers(root.at("pre_tokenizer"));
    if (pre_tokenizers_.bytes_at_last && bpe_.has_all_bytes()) {
      units_ = BpeUnits::kBytes;
    } else if (pre_tokenizers_.bytes_at_last) {
      pre_tokenizers_.steps.push_back(make_byte_mapping());
    }
    if (root.has("post_processor")) {
      surrounding_ =
          read_post_processor(root.at("post_processor"), [this](std::string_view token) { return id_of(token); });
    }
    separator_ = find_separator(settings, where);
    prefix_ = settings.start.has_value() ? id_of(*settings.start) : -1;
    if (prefix_ < 0) prefix_ = Tokenizer::prefix_id();
  }

  using Tokenizer::bytes_of;
  using Tokenizer::encode;

  std::string kind() const override { return "huggingface"; }
  std::string serialized() const override { return tokenizer_among(files_)->content; }
  std::vector<NamedFile> files() const override { return files_; }
  std::int64_t vocab() const override { return std::max(bpe_.vocabulary().size(), added_.size()); }
  std::int32_t separator() const override { return separator_; }
  std::vector<std::int32_t> start_ids() const override { return surrounding_.before; }
  std::vector<std::int32_t> end_ids() const override { return surrounding_.behind; }
  std::int32_t prefix_id() const override { return prefix_; }
  std::string unheeded() const override {
    return unheeded_.empty() ? "" : fmt::format("{}: {}", kTokenizerConfig, fmt::join(unheeded_, ", "));
  }

  void encode(std::string_view text, Place place, std::vector<std::int32_t>& ids) const override {
    std::string mended;
    if (!is_well_formed(text)) {
      mended = replace_ill_formed(text);
      text = mended;
    }
    const ScratchPool::Lease lease(pool_);
    std::vector<Stretch>& stretches = (*lease).raw;
    stretches.clear();
    added_.cut_raw(text, stretches);
    const Section first = place == Place::kStart ? Section::kFirst : Section::kContinues;
    for (const Stretch& stretch : stretches) {
      if (stretch.id >= 0) {
        ids.push_back(stretch.id);
        continue;
      }
      encode_text(text.substr(stretch.span.begin, stretch.span.end - stretch.span.begin),
                  stretch.span.begin == 0 ? first : Section::kLater, *lease, ids);
    }
  }

  std::string bytes_of(std::int32_t id, Place place) const override {
    const std::string* token = token_of(id);
    return token == nullptr ? std::string() : decoder_.piece(*token, place);
  }

  std::string decode(std::span<const std::int32_t> ids) const override {
    std::vector<std::string> tokens;
    for (const std::int32_t id : ids) {
      if (const std::string* token = token_of(id)) tokens.push_back(*token);
    }
    return decoder_.whole(std::move(tokens));
  }
  bool decodes_to_utf8() const override { return true; }

 private:
  static Decoder read_decoder(const JsonNode& root) {
    if (!root.has("decoder")) return Decoder(nullptr);
    const JsonNode node = root.at("decoder");
    return Decoder(&node);
  }

  // What the id decodes from; nothing for special tokens and for ids that no token has.
  const std::string* token_of(std::int32_t id) const {
    if (id < 0 || id >= vocab()) reject_input("tokenizer: id {}; right are 0 to {}", id, vocab() - 1);
    if (const AddedToken* added = added_.find(id)) return added->special ? nullptr : &added->content;
    if (id >= bpe_.vocabulary().size() || bpe_.vocabulary().token(id).empty()) return nullptr;
    return &bpe_.vocabulary().token(id);
  }

  std::int32_t id_of(std::string_view token) const {
    const AddedToken* added = added_.find(token);
    return added != nullptr ? added->id : bpe_.vocabulary().find(token);
  }

  // A text without raw added tokens.
  void encode_text(std::string_view text, Section section, Scratch& scratch, std::vector<std::int32_t>& ids) const {
    if (normalizer_ == nullptr && !added_.has_normalized()) {
      scratch.words.text = text;
      return encode_words(section, scratch, ids);
    }
    std::string normalized(text);
    if (normalizer_ != nullptr) {
      normalizer_->apply(normalized, section == Section::kContinues ? Place::kMiddle : Place::kStart);
    }
    if (!added_.has_normalized()) {
      scratch.words.text = std::move(normalized);
      return encode_words(section, scratch, ids);
    }
    scratch.normalized.clear();
    added_.cut_normalized(normalized, scratch.normalized);
    for (const Stretch& stretch : scratch.normalized) {
      if (stretch.id >= 0) {
        ids.push_back(stretch.id);
        continue;
      }
      scratch.words.text.assign(normalized, stretch.span.begin, stretch.span.end - stretch.span.begin);
      encode_words(stretch.span.begin == 0 ? section : Section::kLater, scratch, ids);
    }
  }

  void encode_words(Section section, Scratch& scratch, std::vector<std::int32_t>& ids) const {
    Words& words = scratch.words;
    if (words.text.empty()) return;
    words.spans.assign(1, {0, words.text.size()});
    words.section = section;
    pre_tokenizers_.apply(words);
    const std::string_view text = words.text;
    for (const Span& span : words.spans) {
      if (!span.empty()) bpe_.encode(text.substr(span.begin, span.end - span.begin), units_, scratch.bpe, ids);
    }
  }

  std::int32_t find_separator(const Settings& settings, const std::string& where) const {
    if (settings.end) return id_of(*settings.end);
    for (const char* end : kEnds) {
      if (const AddedToken* token = added_.find(end)) return token->id;
    }
    reject_input("{}: no end of a text: right is an eos_token in {} beside it, or one of the added tokens {}", where,
                 kTokenizerConfig, fmt::join(kEnds, ", "));
  }

  std::vector<NamedFile> files_;  // tokenizer.json among them
  std::vector<std::string> unheeded_;
  std::unique_ptr<Normalizer> normalizer_;
  Bpe bpe_;
  AddedTokens added_;
  Decoder decoder_;
  PreTokenizers pre_tokenizers_;
  BpeUnits units_ = BpeUnits::kCharacters;
  Surrounding surrounding_;
  std::int32_t separator_ = -1;
  std::int32_t prefix_ = -1;
  mutable ScratchPool pool_;
};

std::unique_ptr<Tokenizer> make(std::vector<NamedFile> files, const std::string& where) {
  const std::string* main = content_of(files, kTokenizerJson);
  if (main == nullptr && content_of(files, kTokenizerModel) != nullptr) {
    return make_configured_sentencepiece(std::move(files), where);
  }
  if (main == nullptr) reject_input("{}: holds neither {} nor {}", where, kTokenizerJson, kTokenizerModel);
  const std::string place = fmt::format("{}: {}", where, kTokenizerJson);
  nlohmann::json json = parse_json(*main, place);
  const Settings settings = read_settings(files, where);
  std::vector<std::string> unheeded;
  apply_settings(settings, json, unheeded);
  return std::make_unique<HuggingFaceTokenizer>(std::move(files), JsonNode(json, place), settings, std::move(unheeded),
                                                where);
}

}  // namespace

std::unique_ptr<Tokenizer> make_huggingface(const std::string& files, const std::string& where) {
  return make(files_of({"huggingface", files}, where), where);
}

std::unique_ptr<Tokenizer> load_huggingface(const fs::path& path) {
  const bool is_folder = fs::is_directory(path);
  const fs::path folder = is_folder ? path : parent_of(path);
  bool is_model = !is_folder && path.filename() == kTokenizerModel;
  if (is_folder && !fs::is_regular_file(folder / kTokenizerJson)) {
    is_model = fs::is_regular_file(folder / kTokenizerModel);
    if (!is_model) {
      reject_input("'{}': holds no tokenizer: neither {} nor {}", path.string(), kTokenizerJson, kTokenizerModel);
    }
  }
  const std::string_view main = is_model ? kTokenizerModel : kTokenizerJson;
  if (is_model && !fs::is_regular_file(folder / kTokenizerConfig)) {
    return load_sentencepiece(is_folder ? folder / main : path);
  }
  std::vector<NamedFile> files;
  const auto add = [&](std::string_view name, const fs::path& file) {
    files.push_back({std::string(name), read_file(file, kLargestFile)});
  };
  add(main, is_folder ? folder / main : path);
  for (const std::string_view name : kBesideTokenizerJson) {
    if (fs::is_regular_file(folder / name)) add(name, folder / name);
  }
  const std::string where = fmt::format("'{}'", path.string());
  if (is_folder && !is_model && fs::is_regular_file(folder / kTokenizerModel)) {
    files.push_back({std::string(kTokenizerModel), read_file(folder / kTokenizerModel, kLargestFile)});
    const std::optional<CarriedTokenizer> own = tokenizer_among(files);
    if (own->kind != "huggingface") return make_tokenizer(own->kind, own->content, where);
    files.pop_back();
  } else if (const std::optional<CarriedTokenizer> own = tokenizer_among(files); is_folder && own->kind == "bytes") {
    return make_byte_tokenizer();
  }
  return make(std::move(files), where);
}

}  // namespace kvloom
