#include "infer/huggingface/pre_tokenizer.h"

#include <algorithm>

#include "infer/huggingface/byte_alphabet.h"
#include "infer/huggingface/growth.h"
#include "infer/huggingface/pattern.h"
#include "infer/unicode.h"

namespace kvloom::huggingface {
namespace {

// Encodes GPT-2's words (github.com/openai/gpt-2, src/encoder.py).
constexpr std::string_view kGpt2Words = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
// The reference has these of another library: its words hold joiners, but none of Latin-1's fractions.
constexpr std::string_view kWords =
    R"([\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\x{200C}\x{200D}]+|[^\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\s\x{200C}\x{200D}]+)";
constexpr std::string_view kPunctuation = R"([!-\/:-@\[-`\{-~\p{P}])";

// Rewrites the words one after the other into a new text; `append(written, word, is_first)` writes one.
template <typename Append>
void rewrite(Words& words, const Append& append) {
  std::string written;
  written.reserve(words.text.size() + words.text.size() / 8 + 16);
  for (Span& span : words.spans) {
    const std::size_t begin = written.size();
    append(written, std::string_view(words.text).substr(span.begin, span.end - span.begin), span.begin == 0);
    span = {begin, written.size()};
  }
  words.text = std::move(written);
}

// GPT-2's space before words that have none.
class PrefixSpace final : public PreTokenizer {
 public:
  void apply(Words& words) const override {
    rewrite(words, [&](std::string& written, std::string_view word, bool is_first) {
      const bool goes_on = is_first && words.section == Section::kContinues;
      if (!goes_on && !word.starts_with(' ')) written += ' ';
      written += word;
    });
  }
};

class ByteMapping final : public PreTokenizer {
 public:
  void apply(Words& words) const override {
    rewrite(words,
            [this](std::string& written, std::string_view word, bool) { written += alphabet_.characters_of(word); });
  }

 private:
  ByteAlphabet alphabet_;
};

enum class Scheme { kFirst, kAlways, kNever };

// A visible character for every space, and one before words that have none.
class SpaceMarks final : public PreTokenizer {
 public:
  SpaceMarks(std::string mark, Scheme scheme) : mark_(std::move(mark)), scheme_(scheme) {}

  void apply(Words& words) const override {
    rewrite(words, [&](std::string& written, std::string_view word, bool is_first) {
      const bool marked = word.starts_with(' ') || word.starts_with(mark_);
      if (!marked && wants_mark(words.section, is_first)) written += mark_;
      for (std::size_t at = 0; at < word.size();) {
        const std::size_t space = std::min(word.find(' ', at), word.size());
        written += word.substr(at, space - at);
        if (space < word.size()) written += mark_;
        at = space + 1;
      }
    });
  }

 private:
  bool wants_mark(Section section, bool is_first) const {
    if (scheme_ == Scheme::kFirst) return is_first && section == Section::kFirst;
    return scheme_ == Scheme::kAlways && !(is_first && section == Section::kContinues);
  }

  std::string mark_;
  Scheme scheme_;
};

enum class Behaviour { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

struct Part {
  Span span;
  bool is_match;
};

class Split final : public PreTokenizer {
 public:
  Split(Pattern pattern, Behaviour behaviour, bool invert)
      : pattern_(std::move(pattern)), behaviour_(behaviour), invert_(invert) {}

  void apply(Words& words) const override {
    std::vector<Span> cut;
    cut.reserve(words.spans.size() + words.text.size() / 4);
    std::vector<Span> matches;
    std::vector<Part> parts;
    for (const Span& word : words.spans) {
      if (word.empty()) continue;
      matches.clear();
      pattern_.find_all(std::string_view(words.text).substr(word.begin, word.end - word.begin), matches);
      parts.clear();
      fill_parts(word, matches, parts);
      append(parts, cut);
    }
    words.spans = std::move(cut);
  }

 private:
  // The word as matches and what lies between them.
  void fill_parts(const Span& word, const std::vector<Span>& matches, std::vector<Part>& parts) const {
    std::size_t at = word.begin;
    for (const Span& match : matches) {
      const Span span{word.begin + match.begin, word.begin + match.end};
      if (at != span.begin) parts.push_back({{at, span.begin}, invert_});
      parts.push_back({span, !invert_});
      at = span.end;
    }
    if (at != word.end) parts.push_back({{at, word.end}, invert_});
  }

  void append(std::vector<Part>& parts, std::vector<Span>& cut) const {
    if (behaviour_ == Behaviour::kMergedWithNext) std::ranges::reverse(parts);
    const std::size_t first = cut.size();
    bool previous_match = false;
    for (const Part& part : parts) {
      if (behaviour_ == Behaviour::kRemoved && part.is_match) continue;
      const bool merges = cut.size() > first && merges_with_last(part.is_match, previous_match);
      if (merges) {
        cut.back() = {std::min(cut.back().begin, part.span.begin), std::max(cut.back().end, part.span.end)};
      } else {
        cut.push_back(part.span);
      }
      previous_match = part.is_match;
    }
    const auto added = cut.begin() + static_cast<std::ptrdiff_t>(first);
    if (behaviour_ == Behaviour::kMergedWithNext) std::reverse(added, cut.end());
    cut.erase(std::remove_if(added, cut.end(), [](const Span& span) { return span.empty(); }), cut.end());
  }

  bool merges_with_last(bool is_match, bool previous_match) const {
    switch (behaviour_) {
      case Behaviour::kContiguous:
        return is_match == previous_match;
      case Behaviour::kMergedWithPrevious:
      case Behaviour::kMergedWithNext:
        return is_match && !previous_match;
      default:
        return false;
    }
  }

  Pattern pattern_;
  Behaviour behaviour_;
  bool invert_;
};

Behaviour read_behaviour(const JsonNode& node) {
  const std::string& name = node.text();
  if (name == "Removed") return Behaviour::kRemoved;
  if (name == "Isolated") return Behaviour::kIsolated;
  if (name == "MergedWithPrevious") return Behaviour::kMergedWithPrevious;
  if (name == "MergedWithNext") return Behaviour::kMergedWithNext;
  if (name == "Contiguous") return Behaviour::kContiguous;
  node.reject("'{}'; right are Removed, Isolated, MergedWithPrevious, MergedWithNext and Contiguous", name);
}

class Reader {
 public:
  PreTokenizers read(const JsonNode& node) {
    read_step(node);
    if (byte_mapping_is_last_) {
      all_.steps.pop_back();
      all_.bytes_at_last = true;
    }
    return std::move(all_);
  }

 private:
  void add(std::unique_ptr<PreTokenizer> step) {
    all_.steps.push_back(std::move(step));
    byte_mapping_is_last_ = false;
  }
  void split(const JsonNode& node, std::string_view regex, Behaviour behaviour, bool invert = false) {
    add(std::make_unique<Split>(Pattern(Regex(regex, node.place())), behaviour, invert));
  }

  void read_step(const JsonNode& node) {
    const std::string type = node.type();
    if (type == "Sequence") return sequence(node);
    if (type == "ByteLevel") return byte_level(node);
    if (type == "Metaspace") return metaspace(node);
    if (type == "Split") {
      return add(std::make_unique<Split>(Pattern(node.at("pattern")), read_behaviour(node.at("behavior")),
                                         node.truth_or("invert", false)));
    }
    if (type == "Digits") {
      const bool individual = node.truth_or("individual_digits", false);
      return split(node, R"(\p{N})", individual ? Behaviour::kIsolated : Behaviour::kContiguous);
    }
    if (type == "Punctuation") {
      return split(node, kPunctuation,
                   node.has("behavior") ? read_behaviour(node.at("behavior")) : Behaviour::kIsolated);
    }
    if (type == "Whitespace") return split(node, kWords, Behaviour::kRemoved, true);
    if (type == "WhitespaceSplit") return split(node, R"(\s)", Behaviour::kRemoved);
    if (type == "CharDelimiterSplit") {
      std::string delimiter;
      append_character(delimiter, node.at("delimiter").character());
      return add(std::make_unique<Split>(Pattern(delimiter), Behaviour::kRemoved, false));
    }
    if (type == "BertPreTokenizer") {
      split(node, R"(\s)", Behaviour::kRemoved);
      return split(node, kPunctuation, Behaviour::kIsolated);
    }
    node.reject(
        "pre-tokenizer '{}'; kvloom knows ByteLevel, Split, Metaspace, Digits, Punctuation, Whitespace, "
        "WhitespaceSplit, CharDelimiterSplit, BertPreTokenizer and Sequence",
        type);
  }

  void sequence(const JsonNode& node) {
    for (const JsonNode& step : node.at("pretokenizers").items()) {
      if (step.type() == "Sequence") step.reject("a Sequence within a Sequence is not supported");
      read_step(step);
    }
  }

  void byte_level(const JsonNode& node) {
    if (node.truth_or("add_prefix_space", true)) add(std::make_unique<PrefixSpace>());
    if (node.truth_or("use_regex", true)) split(node, kGpt2Words, Behaviour::kIsolated);
    add(make_byte_mapping());
    byte_mapping_is_last_ = true;
  }

  void metaspace(const JsonNode& node) {
    std::string mark;
    append_character(mark, node.at("replacement").character());
    const std::string name = node.text_or("prepend_scheme", "always");
    Scheme scheme = name == "always" ? Scheme::kAlways : name == "first" ? Scheme::kFirst : Scheme::kNever;
    if (scheme == Scheme::kNever && name != "never") {
      node.at("prepend_scheme").reject("'{}'; right are always, first and never", name);
    }
    if (!node.truth_or("add_prefix_space", true)) {
      if (node.has("prepend_scheme") && scheme != Scheme::kNever) {
        node.reject("add_prefix_space is false, but prepend_scheme is '{}'", name);
      }
      scheme = Scheme::kNever;
    }
    add(std::make_unique<SpaceMarks>(mark, scheme));
    if (node.truth_or("split", true)) {
      add(std::make_unique<Split>(Pattern(mark), Behaviour::kMergedWithNext, false));
    }
  }

  PreTokenizers all_;
  bool byte_mapping_is_last_ = false;
};

}  // namespace

void PreTokenizers::apply(Words& words) const {
  const std::size_t before = words.text.size();
  for (const auto& step : steps) {
    step->apply(words);
    check_growth(before, words.text.size());
  }
}

PreTokenizers read_pre_tokenizers(const JsonNode& node) { return Reader().read(node); }

std::unique_ptr<PreTokenizer> make_byte_mapping() { return std::make_unique<ByteMapping>(); }

}  // namespace kvloom::huggingface
