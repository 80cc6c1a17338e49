#include "infer/huggingface/decoder.h"

#include <cctype>
#include <optional>

#include "infer/huggingface/byte_alphabet.h"
#include "infer/huggingface/growth.h"
#include "infer/huggingface/pattern.h"
#include "infer/unicode.h"

namespace kvloom::huggingface {
namespace {

std::string joined(const std::vector<std::string>& tokens, std::string_view between = "") {
  std::string text;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (i > 0) text += between;
    text += tokens[i];
  }
  return text;
}

std::size_t bytes_in(const std::vector<std::string>& tokens) {
  std::size_t bytes = 0;
  for (const std::string& token : tokens) bytes += token.size();
  return bytes;
}

class Spaced final : public DecoderStep {
 public:
  void apply(std::vector<std::string>& tokens) const override { tokens = {joined(tokens, " ")}; }
  void apply(std::string& token, Place place) const override {
    if (place == Place::kMiddle) token.insert(0, 1, ' ');
  }
};

class Fuse final : public DecoderStep {
 public:
  void apply(std::vector<std::string>& tokens) const override { tokens = {joined(tokens)}; }
  void apply(std::string&, Place) const override {}
};

class ByteLevel final : public DecoderStep {
 public:
  void apply(std::vector<std::string>& tokens) const override {
    for (std::string& token : tokens) apply(token, Place::kMiddle);
    tokens = {replace_ill_formed(joined(tokens))};
  }
  // A token of other characters stands for itself.
  void apply(std::string& token, Place) const override {
    if (auto bytes = alphabet_.bytes_of(token)) token = *std::move(bytes);
  }

 private:
  ByteAlphabet alphabet_;
};

// The byte that a token such as "<0x0A>" stands for; the reference takes "<0x+A>" for one, too.
std::optional<char> byte_of(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return std::nullopt;
  const auto digit = [](char c) { return std::isxdigit(static_cast<unsigned char>(c)) != 0; };
  if (!digit(token[4]) || !(digit(token[3]) || token[3] == '+')) return std::nullopt;
  return static_cast<char>(
      std::stoi(std::string(token.substr(token[3] == '+' ? 4 : 3, token[3] == '+' ? 1 : 2)), nullptr, 16));
}

class ByteFallback final : public DecoderStep {
 public:
  void apply(std::vector<std::string>& tokens) const override {
    std::vector<std::string> decoded;
    std::string bytes;
    for (std::string& token : tokens) {
      if (const auto byte = byte_of(token)) {
        bytes += *byte;
        continue;
      }
      flush(bytes, decoded);
      decoded.push_back(std::move(token));
    }
    flush(bytes, decoded);
    tokens = std::move(decoded);
  }
  void apply(std::string& token, Place) const override {
    if (const auto byte = byte_of(token)) token = *byte;
  }

 private:
  // Of bytes that are no text, each becomes a U+FFFD.
  static void flush(std::string& bytes, std::vector<std::string>& decoded) {
    if (bytes.empty()) return;
    if (is_well_formed(bytes)) {
      decoded.push_back(bytes);
    } else {
      decoded.insert(decoded.end(), bytes.size(), std::string(kReplacementCharacter));
    }
    bytes.clear();
  }
};

class Metaspace final : public DecoderStep {
 public:
  Metaspace(std::string mark, bool prepends) : mark_(std::move(mark)), prepends_(prepends) {}
  void apply(std::vector<std::string>& tokens) const override {
    Place place = Place::kStart;
    for (std::string& token : tokens) {
      apply(token, place);
      place = Place::kMiddle;
    }
  }
  // The first token loses all marks.
  void apply(std::string& token, Place place) const override {
    token = Pattern(mark_).replaced(token, prepends_ && place == Place::kStart ? "" : " ");
  }

 private:
  std::string mark_;
  bool prepends_;
};

class Replace final : public DecoderStep {
 public:
  Replace(Pattern pattern, std::string content) : pattern_(std::move(pattern)), content_(std::move(content)) {}
  void apply(std::vector<std::string>& tokens) const override {
    for (std::string& token : tokens) token = pattern_.replaced(token, content_);
  }
  void apply(std::string& token, Place) const override {
    if (is_well_formed(token)) token = pattern_.replaced(token, content_);
  }

 private:
  Pattern pattern_;
  std::string content_;
};

class Strip final : public DecoderStep {
 public:
  struct Rule {
    std::string content;
    std::int64_t start;  // how many it takes at most
    std::int64_t stop;
    bool of_whole_text;  // not of every token
  };
  explicit Strip(Rule rule) : rule_(std::move(rule)) {}

  void apply(std::vector<std::string>& tokens) const override {
    for (std::string& token : tokens) strip(token, rule_.start, rule_.stop);
  }
  // The end of running text is not known yet.
  void apply(std::string& token, Place place) const override {
    if (!rule_.of_whole_text) return strip(token, rule_.start, rule_.stop);
    if (place == Place::kStart) strip(token, rule_.start, 0);
  }

 private:
  void strip(std::string& token, std::int64_t start, std::int64_t stop) const {
    for (; start > 0 && token.starts_with(rule_.content); --start) token.erase(0, rule_.content.size());
    for (; stop > 0 && token.ends_with(rule_.content); --stop) token.resize(token.size() - rule_.content.size());
  }

  Rule rule_;
};

class BpeDecoder final : public DecoderStep {
 public:
  explicit BpeDecoder(std::string suffix) : suffix_(std::move(suffix)) {}
  void apply(std::vector<std::string>& tokens) const override {
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      tokens[i] = Pattern(suffix_).replaced(tokens[i], i + 1 == tokens.size() ? "" : " ");
    }
  }
  void apply(std::string& token, Place) const override { token = Pattern(suffix_).replaced(token, " "); }

 private:
  std::string suffix_;
};

std::string character_text(const JsonNode& node) {
  std::string text;
  append_character(text, node.character());
  return text;
}

}  // namespace

Decoder::Decoder(const JsonNode* node) {
  if (node == nullptr) {
    steps_.push_back(std::make_unique<Spaced>());
  } else if (node->type() == "Sequence") {
    for (const JsonNode& step : node->at("decoders").items()) read(step);
  } else {
    read(*node);
  }
}

void Decoder::read(const JsonNode& node) {
  const std::string type = node.type();
  if (type == "ByteLevel") {
    steps_.push_back(std::make_unique<ByteLevel>());
    fused_ = true;
  } else if (type == "Fuse") {
    steps_.push_back(std::make_unique<Fuse>());
    fused_ = true;
  } else if (type == "ByteFallback") {
    steps_.push_back(std::make_unique<ByteFallback>());
  } else if (type == "Metaspace") {
    const bool prepends =
        node.text_or("prepend_scheme", "always") != "never" && node.truth_or("add_prefix_space", true);
    steps_.push_back(std::make_unique<Metaspace>(character_text(node.at("replacement")), prepends));
  } else if (type == "Replace") {
    steps_.push_back(std::make_unique<Replace>(Pattern(node.at("pattern")), node.at("content").text()));
  } else if (type == "Strip") {
    steps_.push_back(std::make_unique<Strip>(Strip::Rule{.content = character_text(node.at("content")),
                                                         .start = node.at("start").integer(0, 1 << 20),
                                                         .stop = node.at("stop").integer(0, 1 << 20),
                                                         .of_whole_text = fused_}));
  } else if (type == "BPEDecoder") {
    const std::string suffix = node.text_or("suffix", "</w>");
    if (suffix.empty()) node.at("suffix").reject("is empty");
    steps_.push_back(std::make_unique<BpeDecoder>(suffix));
  } else {
    node.reject(
        "decoder '{}'; kvloom knows ByteLevel, ByteFallback, Metaspace, Replace, Fuse, Strip, BPEDecoder and Sequence",
        type);
  }
}

std::string Decoder::whole(std::vector<std::string> tokens) const {
  const std::size_t before = bytes_in(tokens);
  for (const auto& step : steps_) {
    step->apply(tokens);
    check_growth(before, bytes_in(tokens));
  }
  return joined(tokens);
}

std::string Decoder::piece(std::string token, Place place) const {
  for (const auto& step : steps_) step->apply(token, place);
  return token;
}

}  // namespace kvloom::huggingface
