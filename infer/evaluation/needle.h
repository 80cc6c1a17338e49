// Needle in a haystack: a fact that stands at a given depth of a text of a given length, and a question for it. What a
// window or a shared cache loses shows as a cell of the table of length by depth.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "infer/tokenizer.h"

namespace kvloom {

enum class NeedleForm : std::uint8_t {
  kChoice,  // multiple choice among four numbers
  kGreedy,  // the number is what greedy decoding gives
};

struct NeedleOptions {
  std::vector<std::int64_t> lengths;  // tokens of the whole item, at most
  std::vector<double> depths;         // 0: at the start of the text, 1: at its end
  std::int64_t items = 5;             // of each length and depth
  std::uint64_t seed = 1;
  NeedleForm form = NeedleForm::kChoice;
};

// The task file's text. `text` is the haystack, begun anew wherever it ends; each item takes a stretch of it from a
// place that the seed draws. The needle goes between two words, behind a sentence where one ends close by. Every item
// has as many of the text's words as its length allows, counted by the tokenizer with all that it puts around a text.
// Throws InputError when the text has no words, a depth is outside 0 to 1, or a length cannot hold question and answer.
std::string make_needle_task(const std::string& text, const Tokenizer& tokenizer, const NeedleOptions& options);

}  // namespace kvloom
