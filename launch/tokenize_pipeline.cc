#include "launch/tokenize_pipeline.h"

#include <fmt/format.h>
#include <fnmatch.h>
#include <omp.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <fstream>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <utility>

#include "core/file.h"
#include "core/version.h"
#include "infer/tokenizer.h"
#include "kernels/error.h"
#include "launch/terminal.h"
#include "train/document_split.h"
#include "train/token_file.h"

namespace kvloom {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kTrainingSample = std::uint64_t{6} << 20;  // bytes that SentencePiece sees
constexpr std::size_t kPieceSize = 65536;
constexpr std::uint64_t kNoBoundary = std::numeric_limits<std::uint64_t>::max();
constexpr std::size_t kBatchPieces = 256;  // encoded together

struct Source {
  fs::path path;
  std::uint64_t bytes;
};

bool matches(const std::vector<std::string>& globs, const fs::path& path) {
  return globs.empty() || std::ranges::any_of(globs, [&](const std::string& glob) {
           return fnmatch(glob.c_str(), path.filename().c_str(), 0) == 0;
         });
}

void add_file(const fs::path& path, std::vector<Source>& sources) {
  std::error_code error;
  const std::uintmax_t bytes = fs::file_size(path, error);
  if (error) reject_input("'{}': cannot be read: {}", path.string(), error.message());
  sources.push_back({path, bytes});
}

bool is_output(const TokenizeRequest& request, const fs::path& path) {
  std::error_code ignored;
  return fs::equivalent(path, request.output, ignored) ||
         (!request.save_model.empty() && fs::equivalent(path, request.save_model, ignored));
}

// Folders are walked in the order of their names; links to folders are not followed, so that there are no circles, and
// an output is no input.
std::vector<Source> find_sources(const TokenizeRequest& request) {
  std::vector<Source> sources;
  std::error_code error;
  for (const std::string& input : request.inputs) {
    const fs::file_status status = fs::status(input, error);
    if (!fs::exists(status)) reject_input("--input: there is no '{}'", input);
    if (!fs::is_directory(status)) {
      if (is_output(request, input)) reject_input("--input: '{}' is also an output", input);
      add_file(input, sources);
      continue;
    }
    std::vector<fs::path> found;
    fs::recursive_directory_iterator entries(input, fs::directory_options::skip_permission_denied, error);
    if (error) reject_input("--input: '{}' cannot be read: {}", input, error.message());
    for (; entries != fs::recursive_directory_iterator(); entries.increment(error)) {
      std::error_code unreadable;
      const fs::path& path = entries->path();
      if (!entries->is_regular_file(unreadable) || !matches(request.globs, path)) continue;
      if (!is_output(request, path)) found.push_back(path);
    }
    if (error) reject_input("--input: '{}' cannot be read: {}", input, error.message());
    std::ranges::sort(found);
    for (const fs::path& path : found) add_file(path, sources);
  }
  if (sources.empty()) reject_input("--input: no files found{}", request.globs.empty() ? "" : " that match --glob");
  return sources;
}

// Hands out a file in pieces of about `size` bytes that end with a line where they can. None lies on both sides of
// `boundary`: the last piece before it ends there, or with the line before it.
class PieceReader {
 public:
  PieceReader(const fs::path& path, std::size_t size, std::uint64_t boundary = kNoBoundary)
      : path_(path), size_(size), boundary_(boundary), file_(path, std::ios::binary) {
    if (!file_) reject_input("'{}': cannot be opened", path_.string());
  }

  bool next(std::string& piece) {
    piece = std::exchange(rest_, {});
    const std::size_t have = piece.size();
    const bool before = place_ < boundary_;
    const auto wanted = static_cast<std::size_t>(before ? std::min<std::uint64_t>(size_, boundary_ - place_) : size_);
    piece.resize(have + wanted);
    file_.read(piece.data() + have, static_cast<std::streamsize>(wanted));
    piece.resize(have + static_cast<std::size_t>(file_.gcount()));
    place_ += static_cast<std::uint64_t>(file_.gcount());
    if (file_.bad()) reject_input("'{}': reading failed", path_.string());
    if (!file_.eof()) {
      const std::size_t end = cut_of(piece);
      rest_ = piece.substr(end);
      piece.resize(end);
    }
    is_past_boundary_ = !before;
    return !piece.empty();
  }

  bool is_past_boundary() const { return is_past_boundary_; }

 private:
  // After the last newline, or, in a line longer than a piece, before the last character's first byte.
  static std::size_t cut_of(const std::string& piece) {
    const std::size_t line_end = piece.rfind('\n');
    if (line_end != std::string::npos) return line_end + 1;
    std::size_t end = piece.size() - 1;
    while (end > 0 && (static_cast<unsigned char>(piece[end]) & 0xc0) == 0x80) --end;
    return end > 0 ? end : piece.size();
  }

  fs::path path_;
  std::size_t size_;
  std::uint64_t boundary_;
  std::ifstream file_;
  std::uint64_t place_ = 0;  // bytes read
  std::string rest_;
  bool is_past_boundary_ = false;
};

// An even sample of all files, whole files where they fit.
std::vector<std::string> training_sample(const std::vector<Source>& sources, std::uint64_t total) {
  std::vector<std::string> texts;
  const double keep =
      total <= kTrainingSample ? 1.0 : static_cast<double>(kTrainingSample) / static_cast<double>(total);
  double debt = 0;
  for (const Source& source : sources) {
    PieceReader reader(source.path, kPieceSize);
    std::string piece;
    while (reader.next(piece)) {
      debt += keep;
      if (debt < 1) continue;
      debt -= 1;
      texts.push_back(std::move(piece));
    }
  }
  return texts;
}

std::unique_ptr<Tokenizer> choose_tokenizer(const TokenizeRequest& request, const std::vector<Source>& sources,
                                            std::uint64_t total) {
  const std::string& name = request.tokenizer;
  if (name == "bytes") return make_byte_tokenizer();
  const std::size_t colon = name.find(':');
  const std::string kind = name.substr(0, colon);
  const std::string value = colon == std::string::npos ? "" : name.substr(colon + 1);
  if (kind == "sentencepiece" && !value.empty()) return load_sentencepiece(value);
  if (kind == "hf" && !value.empty()) return load_huggingface(value);
  if (kind == "train-sentencepiece" && !value.empty() && value.size() < 8 &&
      std::ranges::all_of(value, [](unsigned char c) { return std::isdigit(c) != 0; })) {
    if (request.progress) request.progress(fmt::format("training a vocabulary of {}", value));
    const std::string model = train_sentencepiece(training_sample(sources, total), {.vocab = std::stoll(value)});
    return make_tokenizer("sentencepiece", model, "trained model");
  }
  reject_input("--tokenizer '{}': right are bytes, sentencepiece:FILE, hf:FILE-OR-FOLDER and train-sentencepiece:VOCAB",
               name);
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
  Encoder(const Tokenizer& tokenizer, TokenFileWriter& writer, int threads)
      : tokenizer_(tokenizer), writer_(writer), threads_(threads) {}

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
    for (std::size_t i = 0; i < pieces_.size(); ++i) {
      const Piece& piece = pieces_[i];
      if (piece.starts_document) writer_.begin_document(piece.part);
      writer_.append(piece.part, tokens[i], piece.text.size());
    }
    pieces_.clear();
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
  std::vector<Piece> pieces_;
};

// A document's two parts, where it has both, are a document each.
void encode_document(const Source& source, std::uint64_t training_bytes, Encoder& encoder) {
  PieceReader reader(source.path, kPieceSize, training_bytes < source.bytes ? training_bytes : kNoBoundary);
  Piece piece;
  bool more = reader.next(piece.text);
  piece.starts_document = true;
  while (more) {
    piece.part = reader.is_past_boundary() ? Part::kValidation : Part::kTraining;
    Piece following;
    more = reader.next(following.text);
    following.starts_document = reader.is_past_boundary() && piece.part == Part::kTraining;
    piece.ends_document = !more || following.starts_document;
    encoder.add(std::move(piece));
    piece = std::move(following);
  }
}

std::string provenance_of(const Source& source, std::uint64_t training_bytes) {
  const nlohmann::ordered_json all = {
      {"path", source.path.string()}, {"bytes", source.bytes}, {"validation_bytes", source.bytes - training_bytes}};
  return all.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

void check(const TokenizeRequest& request) {
  if (!(request.valid_fraction >= 0 && request.valid_fraction <= 0.5)) {
    reject_input("--valid-fraction: {}; right is 0 to 0.5", request.valid_fraction);
  }
  if (!request.save_model.empty() && !request.tokenizer.starts_with("train-sentencepiece:")) {
    reject_input("--save-model: with --tokenizer '{}' no model is trained", request.tokenizer);
  }
  for (const fs::path& path : {request.output, request.save_model}) {
    if (!path.empty() && !fs::is_directory(parent_of(path))) {
      reject_input("'{}': there is no folder '{}'", path.string(), parent_of(path).string());
    }
  }
}

}  // namespace

TokenizeSummary tokenize(const TokenizeRequest& request) {
  const auto start = std::chrono::steady_clock::now();
  check(request);
  const int threads = request.threads > 0 ? request.threads : omp_get_max_threads();
  const std::vector<Source> sources = find_sources(request);
  TokenizeSummary summary{.files = sources.size()};
  std::vector<std::uint64_t> sizes;
  for (const Source& source : sources) sizes.push_back(source.bytes);
  summary.bytes = std::accumulate(sizes.begin(), sizes.end(), std::uint64_t{0});
  if (summary.bytes == 0) reject_input("--input: {} files, all of them empty", sources.size());
  const std::unique_ptr<Tokenizer> tokenizer = choose_tokenizer(request, sources, summary.bytes);
  summary.vocab = tokenizer->vocab();

  TokenFileWriter writer(request.output, {.vocab = tokenizer->vocab(),
                                          .tokenizer_kind = tokenizer->kind(),
                                          .tokenizer_model = tokenizer->serialized(),
                                          .created_by = program_and_version()});
  Encoder encoder(*tokenizer, writer, threads);
  const std::vector<std::uint64_t> training = split_documents(sizes, request.valid_fraction, request.seed);
  std::uint64_t done = 0;
  std::uint64_t shown = 0;
  for (std::size_t i = 0; i < sources.size(); ++i) {
    encode_document(sources[i], training[i], encoder);
    writer.add_provenance(provenance_of(sources[i], training[i]));
    done += sizes[i];
    if (request.progress && done >= shown + summary.bytes / 50) {
      shown = done;
      request.progress(fmt::format("{} of {}", format_bytes(static_cast<double>(done)),
                                   format_bytes(static_cast<double>(summary.bytes))));
    }
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
