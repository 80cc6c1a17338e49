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
  int threads = 0;                                   // 0: all cores
  std::function<void(const std::string&)> progress;  // lines such as "12.0 MiB of 40.0 MiB"
};

struct TokenizeSummary {
  std::uint64_t files = 0;
  std::uint64_t bytes = 0;
  std::uint64_t training_tokens = 0;
  std::uint64_t validation_tokens = 0;
  std::int64_t vocab = 0;
  double seconds = 0;
};

// The same request gives the same file, however many threads work. Memory is bounded, whatever the input's size. A
// document is one input file, ended by the tokenizer's separator; which are for validation, split_documents says.
// Throws InputError when an input is missing or unreadable, when nothing is found, or all is empty.
TokenizeSummary tokenize(const TokenizeRequest& request);

}  // namespace kvloom
