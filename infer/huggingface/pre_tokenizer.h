// The pre-tokenizers of a tokenizer.json, which cut a text into the words that BPE works in: ByteLevel, Split,
// Metaspace, Digits, Punctuation, Whitespace, WhitespaceSplit, CharDelimiterSplit, BertPreTokenizer and Sequence.
// Others are refused by name.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "infer/huggingface/json_node.h"
#include "infer/regex.h"

namespace kvloom::huggingface {

// Where a stretch of text between added tokens stands.
enum class Section {
  kFirst,      // at the start of its document
  kContinues,  // the document went on before it, in a text encoded earlier
  kLater,      // behind an added token
};

// Words are spans of a text, left to right; what lies between them is dropped.
struct Words {
  std::string text;
  std::vector<Span> spans;
  Section section = Section::kFirst;
};

class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  // Cuts every word further, and may rewrite it.
  virtual void apply(Words& words) const = 0;
};

struct PreTokenizers {
  std::vector<std::unique_ptr<PreTokenizer>> steps;
  // Behind them every byte becomes its character of GPT-2's alphabet. BPE may take the bytes themselves instead.
  bool bytes_at_last = false;

  void apply(Words& words) const;
};

PreTokenizers read_pre_tokenizers(const JsonNode& node);

// The step that `bytes_at_last` stands for.
std::unique_ptr<PreTokenizer> make_byte_mapping();

}  // namespace kvloom::huggingface
