// Tokens by id, and ids by token.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "infer/huggingface/json_node.h"

namespace kvloom::huggingface {

class Vocabulary {
 public:
  // An object of ids by token. Every id is another one, and no id lies so far behind the number of tokens that tables
  // by id would be mostly empty.
  explicit Vocabulary(const JsonNode& node);
  Vocabulary(Vocabulary&&) = default;

  std::int32_t size() const { return size_; }  // one more than the largest id
  std::int32_t count() const { return static_cast<std::int32_t>(ids_.size()); }
  // -1 where there is none.
  std::int32_t find(std::string_view token) const {
    const auto found = ids_.find(token);
    return found == ids_.end() ? -1 : found->second;
  }
  // Empty for an id that no token has.
  const std::string& token(std::int32_t id) const { return tokens_[static_cast<std::size_t>(id)]; }
  const std::unordered_map<std::string_view, std::int32_t>& ids() const { return ids_; }

 private:
  std::int32_t size_ = 0;
  std::vector<std::string> tokens_;
  std::unordered_map<std::string_view, std::int32_t> ids_;  // views of tokens_
};

}  // namespace kvloom::huggingface
