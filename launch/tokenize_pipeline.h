// From files and folders to a token file: read in pieces, encoded in parallel, written in order.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace kvloom {

struct TokenizeRequest {
  std::vector<std::string> inputs;  // files, and folders taken with all that is below
  std::vector<std::string> globs;   // of file names inside folders; empty: all
  std::string tokenizer = "bytes";  // or "sentencepiece:FILE", "hf:FILE-OR-FOLDER", "train-sentencepiece:VOCAB"
  std::filesystem::path output;
  std::filesystem::path save_model;  // where a trained SentencePiece model also goes; empty: nowhere
  double valid_fraction = 0.01;
  std::uint64_t seed = 1;                            // of the choice of documents for validation
  int threads = 0;                                   // 0: all cores; at most 1024
  std::function<void(const std::string&)> progress;  // lines such as "12.0 MiB of 40.0 MiB"
};

struct TokenizeSummary {
  std::uint64_t files = 0;
  std::uint64_t repeated_files = 0;  // reached more than once (given twice, or by links), taken the first time alone
  std::uint64_t bytes = 0;
  std::uint64_t training_tokens = 0;
  std::uint64_t validation_tokens = 0;
  std::int64_t vocab = 0;
  double seconds = 0;
};

// The same request gives the same file, however many threads work. Memory is bounded, whatever the input's size. A
// document is one input file, ended by the tokenizer's separator; which are for validation, split_documents says. A
// file that is reached more than once is one document, so that no text is both for training and for validation.
//
// Throws InputError when an input or anything below it is missing or unreadable, when nothing is found, all is empty,
// or an output is a folder, the other output or a file that is read.
TokenizeSummary tokenize(const TokenizeRequest& request);

}  // namespace kvloom
