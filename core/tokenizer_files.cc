#include "core/tokenizer_files.h"

#include <algorithm>

#include "kernels/error.h"
#include "proto/tokenizer.pb.h"

namespace kvloom {
namespace {

constexpr const char* kHuggingFace = "huggingface";
constexpr const char* kSentencePiece = "sentencepiece";

// tokenizer.json of a tokenizer of Hugging Face; all of any other.
std::string model_of(const CarriedTokenizer& tokenizer) {
  proto::TokenizerFiles files;
  if (tokenizer.kind != kHuggingFace || !files.ParseFromString(tokenizer.content)) return tokenizer.content;
  const auto main = std::ranges::find(files.files(), kTokenizerJson, &proto::TokenizerFiles::File::name);
  return main == files.files().end() ? tokenizer.content : main->content();
}

}  // namespace

std::optional<CarriedTokenizer> tokenizer_among(const std::vector<NamedFile>& files) {
  if (const std::string* json = content_of(files, kTokenizerJson)) {
    proto::TokenizerFiles packed;
    const auto add = [&](std::string_view name, const std::string& content) {
      proto::TokenizerFiles::File& file = *packed.add_files();
      file.set_name(std::string(name));
      file.set_content(content);
    };
    add(kTokenizerJson, *json);
    for (const std::string_view name : kBesideTokenizerJson) {
      if (const std::string* content = content_of(files, name)) add(name, *content);
    }
    return CarriedTokenizer{kHuggingFace, packed.SerializeAsString()};
  }
  if (const std::string* model = content_of(files, kTokenizerModel)) return CarriedTokenizer{kSentencePiece, *model};
  return std::nullopt;
}

std::vector<NamedFile> files_of(const CarriedTokenizer& tokenizer, const std::string& where) {
  if (tokenizer.kind == kSentencePiece) return {{std::string(kTokenizerModel), tokenizer.content}};
  if (tokenizer.kind != kHuggingFace) return {};
  proto::TokenizerFiles packed;
  if (!packed.ParseFromString(tokenizer.content) || packed.files().empty()) {
    reject_input("{}: holds no tokenizer files", where);
  }
  std::vector<NamedFile> files;
  for (const auto& file : packed.files()) {
    // It becomes a file of that name.
    if (file.name() != kTokenizerJson &&
        std::ranges::find(kBesideTokenizerJson, file.name()) == kBesideTokenizerJson.end()) {
      reject_input("{}: '{}' is no file of a tokenizer", where, file.name());
    }
    files.push_back({file.name(), file.content()});
  }
  return files;
}

bool is_of_tokenizer(std::string_view name) {
  constexpr std::array<std::string_view, 6> kNames = {kTokenizerJson, kTokenizerModel,     "vocab.json",
                                                      "merges.txt",   "added_tokens.json", "chat_template.json"};
  return std::ranges::find(kNames, name) != kNames.end() ||
         std::ranges::find(kBesideTokenizerJson, name) != kBesideTokenizerJson.end();
}

bool same_tokenizer(const CarriedTokenizer& one, const CarriedTokenizer& other) {
  return one.kind == other.kind && model_of(one) == model_of(other);
}

}  // namespace kvloom
