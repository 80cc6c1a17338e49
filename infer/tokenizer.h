// Text to token ids and back.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvloom {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // "bytes" or "sentencepiece"; with `serialized`, all that make_tokenizer needs.
  virtual std::string kind() const = 0;
  virtual std::string serialized() const = 0;

  virtual std::int64_t vocab() const = 0;
  // The id that stands between documents.
  virtual std::int32_t separator() const = 0;

  // Appends the ids of `text`. Safe to call from several threads.
  virtual void encode(std::string_view text, std::vector<std::int32_t>& ids) const = 0;
  // The bytes of one id, as they stand in running text; separators and other control ids have none.
  virtual std::string bytes_of(std::int32_t id) const = 0;

  std::vector<std::int32_t> encode(std::string_view text) const;
  // Throws InputError for an id outside of the vocabulary.
  std::string decode(std::span<const std::int32_t> ids) const;
};

// Emits text as ids come in, whole UTF-8 characters only.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  // What can be shown now that `id` has come.
  std::string push(std::int32_t id);
  // What is left at the end, broken characters included.
  std::string finish();

 private:
  const Tokenizer& tokenizer_;
  std::string pending_;
};

// Throws InputError when the kind is unknown or the bytes are no model of it; `where` stands in the message.
std::unique_ptr<Tokenizer> make_tokenizer(const std::string& kind, const std::string& serialized,
                                          const std::string& where);

// The 256 bytes, and 256 as separator.
std::unique_ptr<Tokenizer> make_byte_tokenizer();

// A SentencePiece model file.
std::unique_ptr<Tokenizer> load_sentencepiece(const std::filesystem::path& path);

struct SentencePieceTraining {
  std::int64_t vocab;
};

// Trains BPE pieces with byte fallback on the texts and returns the serialised model. Valid UTF-8 comes back byte for
// byte, whatever its spaces and newlines; U+2581, by which pieces write a space, comes back as a space. Equal input
// gives an equal model. Throws InputError when the texts cannot fill the vocabulary, or it cannot hold their
// characters.
std::string train_sentencepiece(const std::vector<std::string>& texts, const SentencePieceTraining& training);

}  // namespace kvloom
