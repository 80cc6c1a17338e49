// The post-processor of a tokenizer.json, as far as it puts ids around a text: TemplateProcessing, BertProcessing,
// RobertaProcessing and Sequence. ByteLevel, which trims offsets, changes no ids.
#pragma once

#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

#include "infer/huggingface/json_node.h"

namespace kvloom::huggingface {

struct Surrounding {
  std::vector<std::int32_t> before;
  std::vector<std::int32_t> behind;
};

// `id_of` gives a token's id, -1 where there is none. Refuses ids that are not those of their tokens.
Surrounding read_post_processor(const JsonNode& node, const std::function<std::int32_t(std::string_view)>& id_of);

}  // namespace kvloom::huggingface
