#include "launch/tokenize_pipeline.h"

#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <utility>

#include "core/file.h"
#include "core/version.h"
#include "infer/tokenizer.h"
#include "kernels/error.h"
#include "launch/piece_reader.h"
#include "launch/same_file.h"
#include "launch/terminal.h"
#include "launch/tokenize_sources.h"
#include "launch/tokenizer_option.h"
#include "train/document_split.h"
#include "train/token_file.h"

namespace kvloom {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kTrainingSample = std::uint64_t{6} << 20;  // bytes that SentencePiece sees
constexpr std::size_t kPieceSize = 65536;
constexpr std::size_t kBatchPieces = 256;  // encoded together
constexpr int kMostThreads = 1024;

// Says of each step how much of all that is to be read it has reached.
class ByteCount {
 public:
  ByteCount(const TokenizeRequest& request, std::string what, std::uint64_t total)
      : request_(request), what_(std::move(what)), total_(total) {}

  void add(std::uint64_t bytes) {
    done_ += bytes;
    if (!request_.progress) return;
    request_.progress(fmt::format("{} {} of {}", what_, format_bytes(static_cast<double>(done_)),
                                  format_bytes(static_cast<double>(total_))));
  }

 private:
  const TokenizeRequest& request_;
  std::string what_;
  std::uint64_t total_;
  std::uint64_t done_ = 0;
};

// An even sample of all files, whole files where they fit.
std::vector<std::string> training_sample(const std::vector<Source>& sources, std::uint64_t total, ByteCount read) {
  std::vector<std::string> texts;
  const double keep =
      total <= kTrainingSample ? 1.0 : static_cast<double>(kTrainingSample) / static_cast<double>(total);
  double debt = 0;
  for (const Source& source : sources) {
    PieceReader reader(source.path, kPieceSize);
    std::string piece;
    while (reader.next(piece)) {
      read.add(piece.size());
      debt += keep;
      if (debt < 1) continue;
      debt -= 1;
      texts.push_back(std::move(piece));
    }
  }
  return texts;
}

std::unique_ptr<Tokenizer> choose_tokenizer(const TokenizeRequest& request, const TokenizerOption& tokenizer,
                                            const std::vector<Source>& sources, std::uint64_t total) {
  if (tokenizer.form != TokenizerForm::kTrained) return load_tokenizer(tokenizer);
  const ByteCount read(request, fmt::format("training a vocabulary of {}: read", tokenizer.vocab), total);
  const std::string model = train_sentencepiece(training_sample(sources, total, read), {.vocab = tokenizer.vocab});
  return make_tokenizer("sentencepiece", model, "trained model");
}

struct Piece {
  std::string text;
  Part part = Part::kTraining;
  bool starts_document = false;
  bool ends_document = false;
};

// Collects pieces, encodes a batch at a time, appends in order.
class Encoder {
 public:
  Encoder(const Tokenizer& tokenizer, TokenFileWriter& writer, int threads, ByteCount done)
      : tokenizer_(tokenizer), writer_(writer), threads_(threads), done_(std::move(done)) {}

  void add(Piece piece) {
    pieces_.push_back(std::move(piece));
    if (pieces_.size() == kBatchPieces) flush();
  }

  void flush() {
    std::vector<std::vector<std::int32_t>> tokens(pieces_.size());
    std::string failure;
#pragma omp parallel for schedule(dynamic) num_threads(threads_)
    for (std::size_t i = 0; i < pieces_.size(); ++i) {
      try {
        encode(pieces_[i], tokens[i]);
      } catch (const std::exception& error) {
#pragma omp critical
        failure = error.what();
      }
    }
    if (!failure.empty()) fail("{}", failure);
    std::uint64_t bytes = 0;
    for (std::size_t i = 0; i < pieces_.size(); ++i) {
      const Piece& piece = pieces_[i];
      if (piece.starts_document) writer_.begin_document(piece.part);
      writer_.append(piece.part, tokens[i], piece.text.size());
      bytes += piece.text.size();
    }
    pieces_.clear();
    done_.add(bytes);
  }

 private:
  // A document stands between the ids that the tokenizer puts around a text, and a separator ends it.
  void encode(const Piece& piece, std::vector<std::int32_t>& ids) const {
    if (piece.starts_document) ids = tokenizer_.start_ids();
    tokenizer_.encode(piece.text, piece.starts_document ? Place::kStart : Place::kMiddle, ids);
    if (!piece.ends_document) return;
    const std::vector<std::int32_t> end = tokenizer_.end_ids();
    ids.insert(ids.end(), end.begin(), end.end());
    if (end.empty() || end.back() != tokenizer_.separator()) ids.push_back(tokenizer_.separator());
  }

  const Tokenizer& tokenizer_;
  TokenFileWriter& writer_;
  int threads_;
  ByteCount done_;
  std::vector<Piece> pieces_;
};

// A document's two parts, where it has both, are a document each. Returns the bytes of the validation part: it may
// begin before `training_bytes`, with the line.
std::uint64_t encode_document(const Source& source, std::uint64_t training_bytes, Encoder& encoder) {
  PieceReader reader(source.path, kPieceSize, training_bytes < source.bytes ? training_bytes : kNoBoundary);
  std::uint64_t validation_bytes = 0;
  Piece piece;
  bool more = reader.next(piece.text);
  piece.starts_document = true;
  while (more) {
    piece.part = reader.is_past_boundary() ? Part::kValidation : Part::kTraining;
    if (piece.part == Part::kValidation) validation_bytes += piece.text.size();
    Piece following;
    more = reader.next(following.text);
    following.starts_document = reader.is_past_boundary() && piece.part == Part::kTraining;
    piece.ends_document = !more || following.starts_document;
    encoder.add(std::move(piece));
    piece = std::move(following);
  }
  return validation_bytes;
}

std::string provenance_of(const Source& source, std::uint64_t validation_bytes) {
  const nlohmann::ordered_json all = {
      {"path", source.path.string()}, {"bytes", source.bytes}, {"validation_bytes", validation_bytes}};
  return all.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

void check_output(const char* option, const fs::path& path) {
  try {
    writable_target(path);
  } catch (const InputError& error) {
    reject_input("{}: {}", option, error.what());
  }
}

void check_tokenizer_is_kept(const TokenizeRequest& request, const TokenizerOption& tokenizer) {
  std::vector<fs::path> files = {tokenizer.path};
  if (tokenizer.form == TokenizerForm::kHuggingFace) {
    // What load_huggingface reads lies in one folder.
    std::error_code error;
    const fs::path folder = fs::is_directory(tokenizer.path, error) ? tokenizer.path : parent_of(tokenizer.path);
    for (const std::string_view name : {kTokenizerJson, kTokenizerModel}) files.push_back(folder / name);
    for (const std::string_view name : kBesideTokenizerJson) files.push_back(folder / name);
  }
  for (const fs::path& file : files) {
    if (is_output(request, file)) reject_input("--output: '{}' is the tokenizer's", file.string());
  }
}

void check(const TokenizeRequest& request, const TokenizerOption& tokenizer) {
  if (!(request.valid_fraction >= 0 && request.valid_fraction <= 0.5)) {
    reject_input("--valid-fraction: {}; right is 0 to 0.5", request.valid_fraction);
  }
  if (!request.save_model.empty() && tokenizer.form != TokenizerForm::kTrained) {
    reject_input("--save-model: with --tokenizer '{}' no model is trained", request.tokenizer);
  }
  if (request.threads < 0 || request.threads > kMostThreads) {
    reject_input("--threads: {}; right is 0 to {}", request.threads, kMostThreads);
  }
  for (const auto& [option, path] : {std::pair("--output", request.output), {"--save-model", request.save_model}}) {
    if (!path.empty()) check_output(option, path);
  }
  if (!request.save_model.empty() && is_same_file(request.save_model, request.output)) {
    reject_input("--save-model: '{}' is also --output; right is another file", request.save_model.string());
  }
  if (!tokenizer.path.empty()) check_tokenizer_is_kept(request, tokenizer);
}

}  // namespace

TokenizeSummary tokenize(const TokenizeRequest& request) {
  const auto start = std::chrono::steady_clock::now();
  const TokenizerOption named = parse_tokenizer(request.tokenizer, TokenizerTraining::kOffered);
  check(request, named);
  const int threads = request.threads > 0 ? request.threads : omp_get_max_threads();
  const Sources found = find_sources(request);
  const std::vector<Source>& sources = found.all();
  TokenizeSummary summary{.files = sources.size(), .repeated_files = found.repeated()};
  std::vector<std::uint64_t> sizes;
  for (const Source& source : sources) sizes.push_back(source.bytes);
  summary.bytes = std::accumulate(sizes.begin(), sizes.end(), std::uint64_t{0});
  if (summary.bytes == 0) reject_input("--input: {} files, all of them empty", sources.size());
  const std::unique_ptr<Tokenizer> tokenizer = choose_tokenizer(request, named, sources, summary.bytes);
  summary.vocab = tokenizer->vocab();

  TokenFileWriter writer(request.output, {.vocab = tokenizer->vocab(),
                                          .tokenizer_kind = tokenizer->kind(),
                                          .tokenizer_model = tokenizer->serialized(),
                                          .created_by = program_and_version()});
  Encoder encoder(*tokenizer, writer, threads, ByteCount(request, "encoded", summary.bytes));
  const std::vector<std::uint64_t> training = split_documents(sizes, request.valid_fraction, request.seed);
  for (std::size_t i = 0; i < sources.size(); ++i) {
    const std::uint64_t validation_bytes = encode_document(sources[i], training[i], encoder);
    writer.add_provenance(provenance_of(sources[i], validation_bytes));
  }
  encoder.flush();
  writer.finish();
  if (!request.save_model.empty()) write_file_atomically(request.save_model, tokenizer->serialized());
  summary.training_tokens = writer.count(Part::kTraining);
  summary.validation_tokens = writer.count(Part::kValidation);
  summary.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return summary;
}

}  // namespace kvloom
