// From files and folders to a token file: read in pieces, encoded in parallel, written in order.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "infer/tokenize/text_file.h"

namespace kvloom {

enum class HiddenFiles : std::uint8_t { kSkip, kTake };

struct TokenizeRequest {
  std::vector<std::string> inputs;          // files, folders taken with all that is below, "-": standard input
  std::vector<std::string> globs;           // of file names inside folders; empty: all
  HiddenFiles hidden = HiddenFiles::kSkip;  // of folders: names that begin with a dot
  FormRule form = FormRule::kByName;
  std::string text_key = "text";    // of JSON lines
  std::string tokenizer = "bytes";  // or "sentencepiece:FILE", "hf:FILE-OR-FOLDER", "train-sentencepiece:VOCAB"
  std::filesystem::path output;
  std::filesystem::path save_model;  // where a trained SentencePiece model also goes; empty: nowhere
  double valid_fraction = 0.01;
  std::uint64_t seed = 1;                            // of the choice of documents for validation
  int threads = 0;                                   // 0: all cores; at most 1024
  std::function<void(const std::string&)> progress;  // lines such as "12.0 MiB of 40.0 MiB"
  std::function<void(const std::string&)> warn;      // of what a tokenizer's files say and is not heeded, a line
};

struct TokenizeSummary {
  std::uint64_t files = 0;
  std::uint64_t repeated_files = 0;  // reached more than once (given twice, or by links), taken the first time alone
  std::uint64_t hidden_files = 0;    // and folders, passed over
  std::uint64_t skipped_links = 0;   // to nothing, to themselves or to folders
  std::uint64_t documents = 0;
  std::uint64_t empty_documents = 0;   // JSON lines without text, left out
  std::uint64_t bytes = 0;             // of text
  std::uint64_t ill_formed_bytes = 0;  // of no UTF-8: U+FFFD for tokenizers other than bytes
  std::uint64_t forced_cuts = 0;       // places in texts without any good one for 64 MiB, where ids may differ
  std::uint64_t training_sample = 0;   // bytes that a trained vocabulary was made from; 0: none was trained
  std::uint64_t training_tokens = 0;
  std::uint64_t validation_tokens = 0;
  std::int64_t vocab = 0;
  double seconds = 0;
};

// The same request gives the same file, however many threads work. Memory is bounded, whatever the input's size, but
// for single lines of JSON. A document is one file of plain text or one line of JSON lines, ended by the tokenizer's
// separator, and has the ids that the tokenizer gives of it as a whole. Which files are for validation, split_documents
// says; which lines, held_out_below. A file that is reached more than once is read once, so that no text is both for
// training and for validation.
//
// Throws InputError when an input or anything below it is missing, unreadable or no text, when nothing is found, all is
// empty, or an output is a folder, the other output or a file that is read.
TokenizeSummary tokenize(const TokenizeRequest& request);

}  // namespace kvloom
