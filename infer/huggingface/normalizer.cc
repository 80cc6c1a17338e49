#include "infer/huggingface/normalizer.h"

#include "infer/huggingface/byte_alphabet.h"
#include "infer/huggingface/growth.h"
#include "infer/huggingface/pattern.h"
#include "infer/unicode.h"

namespace kvloom::huggingface {
namespace {

class Form final : public Normalizer {
 public:
  explicit Form(NormalizationForm form) : form_(form) {}
  void apply(std::string& text, Place) const override { text = normalized(text, form_); }

 private:
  NormalizationForm form_;
};

class Lowercase final : public Normalizer {
 public:
  void apply(std::string& text, Place) const override { text = lowercased(text); }
};

class ByteLevel final : public Normalizer {
 public:
  void apply(std::string& text, Place) const override { text = alphabet_.characters_of(text); }

 private:
  ByteAlphabet alphabet_;
};

class Prepend final : public Normalizer {
 public:
  explicit Prepend(std::string text) : text_(std::move(text)) {}
  void apply(std::string& text, Place place) const override {
    if (!text.empty() && place == Place::kStart) text.insert(0, text_);
  }

 private:
  std::string text_;
};

class Replace final : public Normalizer {
 public:
  Replace(Pattern pattern, std::string content) : pattern_(std::move(pattern)), content_(std::move(content)) {}
  void apply(std::string& text, Place) const override { text = pattern_.replaced(text, content_); }

 private:
  Pattern pattern_;
  std::string content_;
};

class Strip final : public Normalizer {
 public:
  Strip(bool left, bool right) : left_(left), right_(right) {}
  void apply(std::string& text, Place) const override {
    std::string_view kept = text;
    while (left_ && !kept.empty() && is_white_space(first_character(kept).code)) {
      kept.remove_prefix(first_character(kept).bytes);
    }
    while (right_ && !kept.empty() && is_white_space(last_character(kept).code)) {
      kept.remove_suffix(last_character(kept).bytes);
    }
    text = std::string(kept);
  }

 private:
  bool left_;
  bool right_;
};

// Rewrites character by character.
template <typename Rewrite>
void rewrite(std::string& text, const Rewrite& append) {
  std::string written;
  written.reserve(text.size());
  for (std::string_view rest = text; !rest.empty();) {
    const Character character = first_character(rest);
    append(written, character.code);
    rest.remove_prefix(character.bytes);
  }
  text = std::move(written);
}

class StripAccents final : public Normalizer {
 public:
  void apply(std::string& text, Place) const override {
    rewrite(text, [](std::string& written, char32_t code) {
      if (!is_mark(code)) append_character(written, code);
    });
  }
};

// SentencePiece's rules for machine translation, without the forms.
class Nmt final : public Normalizer {
 public:
  void apply(std::string& text, Place) const override {
    rewrite(text, [](std::string& written, char32_t code) {
      const bool control = (code >= 0x01 && code <= 0x08) || code == 0x0b || (code >= 0x0e && code <= 0x1f) ||
                           code == 0x7f || code == 0x8f || code == 0x9f;
      const bool space = code == 0x09 || code == 0x0a || code == 0x0c || code == 0x0d || code == 0x1680 ||
                         (code >= 0x200b && code <= 0x200f) || code == 0x2028 || code == 0x2029 || code == 0x2581 ||
                         code == 0xfeff || code == 0xfffd;
      if (!control) append_character(written, space ? U' ' : code);
    });
  }
};

class Sequence final : public Normalizer {
 public:
  explicit Sequence(std::vector<std::unique_ptr<Normalizer>> steps) : steps_(std::move(steps)) {}
  void apply(std::string& text, Place place) const override {
    const std::size_t before = text.size();
    for (const auto& step : steps_) {
      step->apply(text, place);
      check_growth(before, text.size());
    }
  }

 private:
  std::vector<std::unique_ptr<Normalizer>> steps_;
};

std::unique_ptr<Normalizer> read_sequence(const JsonNode& node) {
  std::vector<std::unique_ptr<Normalizer>> steps;
  for (const JsonNode& step : node.at("normalizers").items()) {
    if (step.type() == "Sequence") step.reject("a Sequence within a Sequence is not supported");
    steps.push_back(read_normalizer(step));
  }
  return std::make_unique<Sequence>(std::move(steps));
}

}  // namespace

std::unique_ptr<Normalizer> read_normalizer(const JsonNode& node) {
  const std::string type = node.type();
  if (type == "Sequence") return read_sequence(node);
  if (type == "NFC") return std::make_unique<Form>(NormalizationForm::kNfc);
  if (type == "NFD") return std::make_unique<Form>(NormalizationForm::kNfd);
  if (type == "NFKC") return std::make_unique<Form>(NormalizationForm::kNfkc);
  if (type == "NFKD") return std::make_unique<Form>(NormalizationForm::kNfkd);
  if (type == "Lowercase") return std::make_unique<Lowercase>();
  if (type == "ByteLevel") return std::make_unique<ByteLevel>();
  if (type == "StripAccents") return std::make_unique<StripAccents>();
  if (type == "Nmt") return std::make_unique<Nmt>();
  if (type == "Strip") {
    return std::make_unique<Strip>(node.at("strip_left").truth(), node.at("strip_right").truth());
  }
  if (type == "Prepend") return std::make_unique<Prepend>(node.at("prepend").text());
  if (type == "Replace") {
    return std::make_unique<Replace>(Pattern(node.at("pattern")), node.at("content").text());
  }
  node.reject(
      "normalizer '{}'; kvloom knows NFC, NFD, NFKC, NFKD, Lowercase, Strip, StripAccents, Nmt, Prepend, Replace, "
      "ByteLevel and Sequence",
      type);
}

}  // namespace kvloom::huggingface
