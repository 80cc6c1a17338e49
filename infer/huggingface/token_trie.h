// Finds the longest of many texts at a place of another text.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

namespace kvloom::huggingface {

class TokenTrie {
 public:
  struct Match {
    std::size_t bytes = 0;
    std::int32_t id = -1;
  };

  bool empty() const { return nodes_.size() == 1; }

  // The text is not empty. Later ids replace earlier ones.
  void insert(std::string_view text, std::int32_t id) {
    starts_[static_cast<unsigned char>(text[0])] = true;
    std::size_t node = 0;
    for (const char byte : text) {
      std::size_t child = child_of(node, byte);
      if (child == 0) {
        child = nodes_.size();
        nodes_[node].children.emplace_back(byte, child);
        nodes_.emplace_back();
      }
      node = child;
    }
    nodes_[node].id = id;
  }

  // Where a text can start, at `from` or behind it; the size where none can.
  std::size_t candidate(std::string_view text, std::size_t from) const {
    while (from < text.size() && !starts_[static_cast<unsigned char>(text[from])]) ++from;
    return from;
  }

  Match longest(std::string_view text) const {
    Match match;
    std::size_t node = 0;
    for (std::size_t at = 0; at < text.size(); ++at) {
      node = child_of(node, text[at]);
      if (node == 0) break;
      if (nodes_[node].id >= 0) match = {at + 1, nodes_[node].id};
    }
    return match;
  }

 private:
  struct Node {
    std::vector<std::pair<char, std::size_t>> children;
    std::int32_t id = -1;
  };

  std::size_t child_of(std::size_t node, char byte) const {
    const auto& children = nodes_[node].children;
    const auto found = std::ranges::find(children, byte, [](const auto& child) { return child.first; });
    return found == children.end() ? 0 : found->second;
  }

  std::vector<Node> nodes_ = std::vector<Node>(1);
  std::array<bool, 256> starts_{};
};

}  // namespace kvloom::huggingface
