// Text to token ids and back.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/tokenizer_files.h"
#include "infer/place.h"

namespace kvloom {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // "bytes", "sentencepiece" or "huggingface"; with `serialized`, all that make_tokenizer needs.
  virtual std::string kind() const = 0;
  virtual std::string serialized() const = 0;
  // The files by which other tools know this tokenizer, under the names that they look for; none for bytes.
  virtual std::vector<NamedFile> files() const { return {}; }

  virtual std::int64_t vocab() const = 0;
  // The id that stands between documents.
  virtual std::int32_t separator() const = 0;
  // The ids that the model expects before every text, and behind it; encode leaves them to the caller.
  virtual std::vector<std::int32_t> start_ids() const { return {}; }
  virtual std::vector<std::int32_t> end_ids() const { return {}; }
  // The id that a text is conditioned on where nothing stands before it: its start if there is one, else the separator.
  virtual std::int32_t prefix_id() const;

  // Appends the ids of `text`. Safe to call from several threads. At kMiddle nothing is done that is only done at the
  // start of a text, such as putting a space before it.
  virtual void encode(std::string_view text, Place place, std::vector<std::int32_t>& ids) const = 0;
  // The bytes of one id, as they stand in running text; separators and other control ids have none. At kStart it is the
  // first id that has any.
  virtual std::string bytes_of(std::int32_t id, Place place) const = 0;
  // The text of all ids. Throws InputError for an id outside of the vocabulary.
  virtual std::string decode(std::span<const std::int32_t> ids) const;
  // Whether decoding puts U+FFFD where bytes are no UTF-8.
  virtual bool decodes_to_utf8() const { return false; }
  // What its files say and kvloom does otherwise, in words, for a warning; mostly nothing.
  virtual std::string unheeded() const { return {}; }

  void encode(std::string_view text, std::vector<std::int32_t>& ids) const { encode(text, Place::kStart, ids); }
  std::vector<std::int32_t> encode(std::string_view text) const;
  std::string bytes_of(std::int32_t id) const { return bytes_of(id, Place::kMiddle); }
};

// Emits text as ids come in, whole UTF-8 characters only.
class StreamDecoder {
 public:
  // At kMiddle the ids go on with a text.
  explicit StreamDecoder(const Tokenizer& tokenizer, Place place = Place::kStart)
      : tokenizer_(tokenizer), place_(place) {}

  // What can be shown now that `id` has come.
  std::string push(std::int32_t id);
  // What is left at the end: a character that lacks bytes.
  std::string finish();
  // Whether the last character lacks bytes.
  bool waits() const { return !pending_.empty(); }

 private:
  const Tokenizer& tokenizer_;
  Place place_;
  std::string pending_;
};

// Throws InputError when the kind is unknown or the bytes are no model of it; `where` stands in the message.
std::unique_ptr<Tokenizer> make_tokenizer(const std::string& kind, const std::string& serialized,
                                          const std::string& where);

// The 256 bytes, and 256 as separator.
std::unique_ptr<Tokenizer> make_byte_tokenizer();

// A SentencePiece model file.
std::unique_ptr<Tokenizer> load_sentencepiece(const std::filesystem::path& path);

// The tokenizer of a Hugging Face folder: its tokenizer.json, or where there is none its tokenizer.model; or one of the
// two by its own path. Throws InputError where it cannot be read. A tokenizer.model is load_sentencepiece's, except
// that a tokenizer_config.json beside it names the start and the end of a text and says, with add_bos_token and
// add_eos_token, whether they stand around it. Where it does not say, they do as in transformers: the start does for
// LlamaTokenizer, the end does not.
//
// A tokenizer.json is of BPE kind. Beside it, tokenizer_config.json names the end
// of a text. Equal to the reference, github.com/huggingface/tokenizers 0.22, in ids and decoded text; what stands in
// the file and is not supported is refused by name. Differences: ill-formed UTF-8 is read as U+FFFD, as Python decodes
// it with errors="replace"; "truncation" and "padding" are not applied; characters younger than Unicode 14 count as
// unassigned (the reference: Unicode 16 in patterns, 9 in normalizers).
std::unique_ptr<Tokenizer> load_huggingface(const std::filesystem::path& path);

struct SentencePieceTraining {
  std::int64_t vocab;
};

// Trains BPE pieces with byte fallback on the texts and returns the serialised model. Valid UTF-8 comes back byte for
// byte, whatever its spaces and newlines; U+2581, by which pieces write a space, comes back as a space. Equal input
// gives an equal model. Throws InputError when the texts cannot fill the vocabulary, or it cannot hold their
// characters.
std::string train_sentencepiece(const std::vector<std::string>& texts, const SentencePieceTraining& training);

}  // namespace kvloom
