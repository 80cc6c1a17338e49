#include "core/convert/huggingface_origin.h"

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "core/convert/json_fields.h"
#include "core/tokenizer_files.h"

namespace kvloom {
namespace {

constexpr std::array kTokenIds = {"bos_token_id", "eos_token_id",           "pad_token_id",
                                  "sep_token_id", "decoder_start_token_id", "suppress_tokens"};

// The text itself where it names none.
std::string without_token_ids(const std::string& text, std::string_view where) {
  nlohmann::ordered_json object = parse_json_object(text, std::string(where));
  std::size_t gone = 0;
  for (const char* name : kTokenIds) gone += object.erase(name);
  return gone == 0 ? text : object.dump(2) + "\n";
}

}  // namespace

void forget_tokenizer(proto::HuggingFaceOrigin& origin) {
  if (!origin.config().empty()) origin.set_config(without_token_ids(origin.config(), "the model's own config.json"));
  auto& files = *origin.mutable_files();
  files.erase(std::remove_if(files.begin(), files.end(), [](const auto& file) { return is_of_tokenizer(file.name()); }),
              files.end());
  for (proto::CarriedFile& file : files) {
    if (file.name() == kGenerationConfig) file.set_content(without_token_ids(file.content(), kGenerationConfig));
  }
}

}  // namespace kvloom
