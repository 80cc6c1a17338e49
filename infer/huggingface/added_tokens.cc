#include "infer/huggingface/added_tokens.h"

#include <algorithm>

#include "infer/unicode.h"

namespace kvloom::huggingface {
namespace {

AddedToken read_token(const JsonNode& node) {
  AddedToken token;
  token.id = static_cast<std::int32_t>(node.at("id").integer(0, 1 << 30));
  token.content = node.at("content").text();
  if (token.content.empty()) node.at("content").reject("is empty");
  token.single_word = node.at("single_word").truth();
  token.lstrip = node.at("lstrip").truth();
  token.rstrip = node.at("rstrip").truth();
  token.normalized = node.at("normalized").truth();
  token.special = node.at("special").truth();
  return token;
}

// Where the white space before `end` starts.
std::size_t space_before(std::string_view text, std::size_t end) {
  while (end > 0) {
    const Character character = last_character(text.substr(0, end));
    if (!is_white_space(character.code)) break;
    end -= character.bytes;
  }
  return end;
}

std::size_t space_behind(std::string_view text, std::size_t begin) {
  while (begin < text.size()) {
    const Character character = first_character(text.substr(begin));
    if (!is_white_space(character.code)) break;
    begin += character.bytes;
  }
  return begin;
}

}  // namespace

AddedTokens::AddedTokens(const JsonNode& node, const Vocabulary& vocabulary, const Normalizer* normalizer) {
  for (const JsonNode& item : node.items()) add(read_token(item), item, vocabulary, normalizer);
}

void AddedTokens::add(AddedToken token, const JsonNode& node, const Vocabulary& vocabulary,
                      const Normalizer* normalizer) {
  if (ids_.contains(token.content)) node.reject("'{}' comes twice", token.content.substr(0, 80));
  const std::int32_t known = vocabulary.find(token.content);
  const std::int32_t right = known >= 0 ? known : std::max(vocabulary.count(), size_);
  if (token.id != right) {
    node.reject("'{}' has id {}; {} {}", token.content.substr(0, 80), token.id,
                known >= 0 ? "the vocabulary gives it" : "the next free one is", right);
  }
  if (tokens_.contains(token.id) ||
      (known < 0 && token.id < vocabulary.size() && !vocabulary.token(token.id).empty())) {
    node.reject("'{}' has id {}, as another token", token.content.substr(0, 80), token.id);
  }
  if (token.single_word && !word_.has_value())
    word_.emplace(R"([\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\x{200C}\x{200D}])", node.place());
  std::string pattern = token.content;
  if (token.normalized && normalizer != nullptr) normalizer->apply(pattern, Place::kStart);
  if (pattern.empty()) node.reject("'{}' is normalized to nothing", token.content.substr(0, 80));
  (token.normalized ? normalized_ : raw_).insert(pattern, token.id);
  size_ = std::max(size_, token.id + 1);
  ids_.emplace(token.content, token.id);
  tokens_.emplace(token.id, std::move(token));
}

const AddedToken* AddedTokens::find(std::int32_t id) const {
  const auto found = tokens_.find(id);
  return found == tokens_.end() ? nullptr : &found->second;
}

const AddedToken* AddedTokens::find(std::string_view content) const {
  const auto found = ids_.find(std::string(content));
  return found == ids_.end() ? nullptr : find(found->second);
}

void AddedTokens::cut(const TokenTrie& trie, std::string_view text, std::vector<Stretch>& stretches) const {
  std::size_t done = 0;
  for (std::size_t at = trie.candidate(text, 0); at < text.size();) {
    const TokenTrie::Match match = trie.longest(text.substr(at));
    Span span{at, at + match.bytes};
    at = trie.candidate(text, match.id >= 0 ? span.end : at + 1);
    if (match.id < 0) continue;
    const AddedToken& token = tokens_.at(match.id);
    if (token.single_word && !stands_alone(text, span)) continue;
    if (token.lstrip) span.begin = std::max(space_before(text, span.begin), done);
    if (token.rstrip) span.end = space_behind(text, span.end);
    if (done < span.begin) stretches.push_back({{done, span.begin}, -1});
    stretches.push_back({span, match.id});
    done = span.end;
  }
  if (done < text.size()) stretches.push_back({{done, text.size()}, -1});
}

bool AddedTokens::stands_alone(std::string_view text, Span span) const {
  const std::string_view before = text.substr(0, span.begin);
  const std::string_view behind = text.substr(span.end);
  if (!before.empty() && is_word(before.substr(before.size() - last_character(before).bytes))) return false;
  return behind.empty() || !is_word(behind.substr(0, first_character(behind).bytes));
}

bool AddedTokens::is_word(std::string_view character) const {
  std::vector<Span> matches;
  word_->find_all(character, matches);
  return !matches.empty();
}

}  // namespace kvloom::huggingface
