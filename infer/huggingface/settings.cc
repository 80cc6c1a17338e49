#include "infer/huggingface/settings.h"

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <utility>

#include "core/git_lfs.h"
#include "core/tokenizer_files.h"
#include "infer/huggingface/json_node.h"

namespace kvloom::huggingface {
namespace {

using Json = nlohmann::json;

constexpr std::array kSpecialTokens = {"bos_token", "eos_token", "unk_token", "sep_token",
                                       "pad_token", "cls_token", "mask_token"};
constexpr const char* kMoreSpecialTokens = "additional_special_tokens";

// A file as JSON, with the name by which messages know it.
struct Document {
  Json json = Json::object();
  std::string place;

  JsonNode node() const { return {json, place}; }
};

Document read(std::span<const NamedFile> files, std::string_view name, const std::string& where) {
  Document document{.place = fmt::format("{}: {}", where, name)};
  const std::string* text = content_of(files, name);
  if (text == nullptr) return document;
  refuse_git_lfs(*text, document.place);
  try {
    document.json = Json::parse(*text);
  } catch (const Json::exception& error) {
    reject_input("{}: is no JSON: {}", document.place, error.what());
  }
  if (!document.json.is_object()) reject_input("{}: is no JSON object", document.place);
  return document;
}

// A text, or an object with the text and how it is looked for.
AddedContent token_in(const JsonNode& node, bool special) {
  if (!node.value().is_object()) return {.content = node.text(), .normalized = !special, .special = special};
  AddedContent token{.content = node.at("content").text()};
  token.special = special || node.truth_or("special", false);
  token.single_word = node.truth_or("single_word", false);
  token.lstrip = node.truth_or("lstrip", false);
  token.rstrip = node.truth_or("rstrip", false);
  token.normalized = node.truth_or("normalized", !token.special);
  return token;
}

std::int32_t id_named(const std::string& text, const JsonNode& node) {
  const bool is_number = !text.empty() && text.size() < 9 &&
                         std::ranges::all_of(text, [](unsigned char c) { return c >= '0' && c <= '9'; });
  if (!is_number) node.reject("'{}' is no id", text.substr(0, 40));
  return std::stoi(text);
}

std::map<std::int32_t, AddedContent> decoder_tokens(const JsonNode& node) {
  std::map<std::int32_t, AddedContent> tokens;
  if (!node.value().is_object()) node.reject("is no object of tokens by id");
  for (const auto& item : node.value().items()) {
    const JsonNode token = node.at(item.key());
    tokens[id_named(item.key(), node)] = token_in(token, false);
  }
  return tokens;
}

// Of added_tokens.json: ids by token.
std::map<std::int32_t, AddedContent> listed_tokens(const JsonNode& node, const std::set<std::string>& specials) {
  std::map<std::int32_t, AddedContent> tokens;
  for (const auto& item : node.value().items()) {
    const auto id = static_cast<std::int32_t>(node.at(item.key()).integer(0, 1 << 30));
    const bool special = specials.contains(item.key());
    tokens[id] = {.content = item.key(), .normalized = !special, .special = special};
  }
  return tokens;
}

void add_special(const JsonNode& node, std::vector<AddedContent>& tokens) {
  for (const char* name : kSpecialTokens) {
    if (node.has(name)) tokens.push_back(token_in(node.at(name), true));
  }
  if (!node.has(kMoreSpecialTokens)) return;
  for (const JsonNode& token : node.at(kMoreSpecialTokens).items()) tokens.push_back(token_in(token, true));
}

// An absent value and null say nothing.
std::optional<bool> flag(const JsonNode& node, const char* name) {
  if (!node.has(name)) return std::nullopt;
  return node.at(name).truth();
}

std::string without_fast(std::string name) {
  constexpr std::string_view kFast = "Fast";
  if (name.ends_with(kFast)) name.resize(name.size() - kFast.size());
  return name;
}

std::optional<std::int64_t> id_among(const Json& tokenizer, const std::optional<std::string>& content) {
  if (!content) return std::nullopt;
  for (const Json& token : tokenizer["added_tokens"]) {
    if (token.value("content", "") == *content) return token.value("id", std::int64_t{-1});
  }
  const Json& vocabulary = tokenizer["model"]["vocab"];
  const auto own = vocabulary.find(*content);
  if (own == vocabulary.end() || !own->is_number_integer()) return std::nullopt;
  return own->get<std::int64_t>();
}

Json template_of(const Json& tokenizer, const std::optional<std::string>& before,
                 const std::optional<std::string>& behind) {
  Json pieces = Json::array();
  Json special = Json::object();
  const auto add = [&](const std::optional<std::string>& token) {
    const std::optional<std::int64_t> id = id_among(tokenizer, token);
    if (!id) return;
    pieces.push_back({{"SpecialToken", {{"id", *token}, {"type_id", 0}}}});
    special[*token] = {{"id", *token}, {"ids", {*id}}, {"tokens", {*token}}};
  };
  add(before);
  pieces.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
  add(behind);
  return {{"type", "TemplateProcessing"}, {"single", pieces}, {"pair", pieces}, {"special_tokens", special}};
}

void set_surrounding(const Settings& settings, Json& tokenizer, std::vector<std::string>& unheeded) {
  if (!settings.adds_start && !settings.adds_end) return;
  const std::optional<SurroundDefaults> defaults = surround_defaults(settings.family);
  if (!defaults) {
    const bool says_more = settings.adds_start.value_or(false) || settings.adds_end.value_or(false);
    const Json processor = tokenizer.value("post_processor", Json());
    const bool adds_nothing =
        processor.is_null() || (processor.is_object() && processor.value("type", "") == "ByteLevel");
    if (says_more && adds_nothing) {
      unheeded.push_back(
          fmt::format("add_bos_token, add_eos_token (a {} of transformers takes what tokenizer.json says)",
                      settings.family.empty() ? "tokenizer without tokenizer_class" : settings.family));
    }
    return;
  }
  const bool start = settings.adds_start.value_or(defaults->start);
  const bool end = settings.adds_end.value_or(defaults->end);
  tokenizer["post_processor"] =
      template_of(tokenizer, start ? settings.start : std::nullopt, end ? settings.end : std::nullopt);
}

// Of a pre-tokenizer that is ByteLevel and nothing else.
void set_space(const Settings& settings, Json& tokenizer, std::vector<std::string>& unheeded) {
  const auto pre = tokenizer.find("pre_tokenizer");
  const bool is_byte_level = pre != tokenizer.end() && pre->is_object() && pre->value("type", Json()) == "ByteLevel";
  const bool is_settled = settings.family == "GPT2Tokenizer" || settings.family == "Qwen2Tokenizer";
  if (is_byte_level && (settings.adds_space || is_settled)) {
    (*pre)["add_prefix_space"] = settings.adds_space.value_or(false);
  } else if (settings.adds_space && !is_byte_level && surround_defaults(settings.family)) {
    unheeded.emplace_back("add_prefix_space (tokenizer.json says whether a space is put before a text)");
  }
}

}  // namespace

void add_tokens(const Settings& settings, Json& tokenizer) {
  const Json model = tokenizer.value("model", Json::object());
  const Json vocabulary = model.is_object() ? model.value("vocab", Json::object()) : Json::object();
  Json& added = tokenizer["added_tokens"];
  if (added.is_null()) added = Json::array();
  if (!vocabulary.is_object() || !added.is_array()) return;  // it will be refused by name
  std::set<std::string> known;
  auto next = static_cast<std::int64_t>(vocabulary.size());
  for (const Json& token : added) {
    if (!token.is_object() || !token.contains("content") || !token["content"].is_string()) return;
    if (!token.contains("id") || !token["id"].is_number_integer()) return;
    known.insert(token["content"].get<std::string>());
    next = std::max(next, token["id"].get<std::int64_t>() + 1);
  }
  for (const AddedContent& token : settings.tokens) {
    if (token.content.empty() || !known.insert(token.content).second) continue;
    const auto own = vocabulary.find(token.content);
    const std::int64_t id = own != vocabulary.end() && own->is_number_integer() ? own->get<std::int64_t>() : next++;
    added.push_back({{"id", id},
                     {"content", token.content},
                     {"single_word", token.single_word},
                     {"lstrip", token.lstrip},
                     {"rstrip", token.rstrip},
                     {"normalized", token.normalized},
                     {"special", token.special}});
  }
}

std::optional<SurroundDefaults> surround_defaults(const std::string& family) {
  for (const char* name : {"LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "CohereTokenizer"}) {
    if (family == name) return SurroundDefaults{true, false};
  }
  if (family == "GPTNeoXTokenizer") return SurroundDefaults{false, false};
  return std::nullopt;
}

Settings read_settings(std::span<const NamedFile> files, const std::string& where) {
  Document config = read(files, kTokenizerConfig, where);
  const bool has_decoder =
      config.json.contains("added_tokens_decoder") && !config.json["added_tokens_decoder"].is_null();
  // With a decoder transformers no longer looks at the older files.
  if (!has_decoder) {
    const Document map = read(files, kSpecialTokensMap, where);
    for (const auto& item : map.json.items()) config.json[item.key()] = item.value();
  }
  const JsonNode node = config.node();
  Settings settings;
  settings.family = without_fast(node.text_or("tokenizer_class", ""));
  if (node.has("bos_token")) settings.start = token_in(node.at("bos_token"), true).content;
  if (node.has("eos_token")) settings.end = token_in(node.at("eos_token"), true).content;
  settings.adds_start = flag(node, "add_bos_token");
  settings.adds_end = flag(node, "add_eos_token");
  settings.adds_space = flag(node, "add_prefix_space");
  std::vector<AddedContent> specials;
  add_special(node, specials);
  std::set<std::string> names;
  for (const AddedContent& token : specials) names.insert(token.content);
  std::map<std::int32_t, AddedContent> by_id;
  if (has_decoder) {
    by_id = decoder_tokens(node.at("added_tokens_decoder"));
  } else {
    const Document listed = read(files, kAddedTokens, where);
    by_id = listed_tokens(listed.node(), names);
  }
  for (auto& [id, token] : by_id) {
    if (names.contains(token.content)) token.special = true;
    settings.tokens.push_back(std::move(token));
  }
  settings.tokens.insert(settings.tokens.end(), specials.begin(), specials.end());
  return settings;
}

void apply_settings(const Settings& settings, Json& tokenizer, std::vector<std::string>& unheeded) {
  if (!tokenizer.is_object() || !tokenizer.contains("model") || !tokenizer["model"].is_object()) return;
  if (!tokenizer["model"].contains("vocab") || !tokenizer["model"]["vocab"].is_object()) return;
  add_tokens(settings, tokenizer);
  set_surrounding(settings, tokenizer, unheeded);
  set_space(settings, tokenizer, unheeded);
}

}  // namespace kvloom::huggingface
