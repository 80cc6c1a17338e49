#include "core/tokenizer_files.h"

#include <algorithm>

#include "kernels/error.h"
#include "proto/tokenizer.pb.h"

namespace kvloom {
namespace {

constexpr const char* kHuggingFace = "huggingface";
constexpr const char* kSentencePiece = "sentencepiece";

// What gives ids their meaning: of a tokenizer of Hugging Face its tokenizer.json, or its SentencePiece model, which is
// that model as any other; of others, all.
CarriedTokenizer model_of(const CarriedTokenizer& tokenizer) {
  proto::TokenizerFiles files;
  if (tokenizer.kind != kHuggingFace || !files.ParseFromString(tokenizer.content)) return tokenizer;
  for (const std::string_view name : {kTokenizerJson, kTokenizerModel}) {
    const auto main = std::ranges::find(files.files(), name, &proto::TokenizerFiles::File::name);
    if (main == files.files().end()) continue;
    return {name == kTokenizerModel ? kSentencePiece : kHuggingFace, main->content()};
  }
  return tokenizer;
}

CarriedTokenizer packed(std::string_view main, const std::string& content, const std::vector<NamedFile>& files) {
  proto::TokenizerFiles all;
  const auto add = [&](std::string_view name, const std::string& text) {
    proto::TokenizerFiles::File& file = *all.add_files();
    file.set_name(std::string(name));
    file.set_content(text);
  };
  add(main, content);
  for (const std::string_view name : kBesideTokenizerJson) {
    if (const std::string* beside = content_of(files, name)) add(name, *beside);
  }
  return {kHuggingFace, all.SerializeAsString()};
}

}  // namespace

std::optional<CarriedTokenizer> tokenizer_among(const std::vector<NamedFile>& files) {
  if (const std::string* json = content_of(files, kTokenizerJson)) return packed(kTokenizerJson, *json, files);
  const std::string* model = content_of(files, kTokenizerModel);
  if (model == nullptr) return std::nullopt;
  if (content_of(files, kTokenizerConfig) == nullptr) return CarriedTokenizer{kSentencePiece, *model};
  return packed(kTokenizerModel, *model, files);
}

std::vector<NamedFile> files_of(const CarriedTokenizer& tokenizer, const std::string& where) {
  if (tokenizer.kind == kSentencePiece) return {{std::string(kTokenizerModel), tokenizer.content}};
  if (tokenizer.kind != kHuggingFace) return {};
  proto::TokenizerFiles all;
  if (!all.ParseFromString(tokenizer.content) || all.files().empty()) {
    reject_input("{}: holds no tokenizer files", where);
  }
  std::vector<NamedFile> files;
  for (const auto& file : all.files()) {
    // It becomes a file of that name.
    if (file.name() != kTokenizerJson && file.name() != kTokenizerModel &&
        std::ranges::find(kBesideTokenizerJson, file.name()) == kBesideTokenizerJson.end()) {
      reject_input("{}: '{}' is no file of a tokenizer", where, file.name());
    }
    files.push_back({file.name(), file.content()});
  }
  return files;
}

bool is_of_tokenizer(std::string_view name) {
  constexpr std::array<std::string_view, 5> kNames = {kTokenizerJson, kTokenizerModel, "vocab.json", "merges.txt",
                                                      "added_tokens.json"};
  return std::ranges::find(kNames, name) != kNames.end() ||
         std::ranges::find(kBesideTokenizerJson, name) != kBesideTokenizerJson.end();
}

bool same_tokenizer(const CarriedTokenizer& one, const CarriedTokenizer& other) {
  const CarriedTokenizer a = model_of(one);
  const CarriedTokenizer b = model_of(other);
  return a.kind == b.kind && a.content == b.content;
}

}  // namespace kvloom
