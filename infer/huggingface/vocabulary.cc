#include "infer/huggingface/vocabulary.h"

#include <algorithm>

namespace kvloom::huggingface {
namespace {

// Ids may leave gaps, but not so many that a short file asks for large tables.
std::int64_t largest_id(std::size_t count) { return static_cast<std::int64_t>(2 * count) + 65536; }

}  // namespace

Vocabulary::Vocabulary(const JsonNode& node) {
  if (!node.value().is_object()) node.reject("is no object");
  const std::size_t count = node.value().size();
  for (const auto& [token, id] : node.value().items()) {
    const JsonNode entry(id, fmt::format("{}['{}']", node.place(), token.substr(0, 80)));
    size_ = std::max(size_, static_cast<std::int32_t>(entry.integer(0, largest_id(count))) + 1);
  }
  tokens_.resize(static_cast<std::size_t>(size_));
  ids_.reserve(count);
  std::vector<bool> taken(tokens_.size());
  for (const auto& [token, value] : node.value().items()) {
    const auto id = value.get<std::size_t>();
    if (taken[id]) {
      node.reject("'{}' and '{}' both have id {}", tokens_[id].substr(0, 80), token.substr(0, 80), id);
    }
    taken[id] = true;
    tokens_[id] = token;
    ids_.emplace(tokens_[id], static_cast<std::int32_t>(id));
  }
}

}  // namespace kvloom::huggingface
