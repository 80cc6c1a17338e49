#include "infer/tokenize/pipeline.h"

#include <fmt/format.h>
#include <omp.h>

#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/file.h"
#include "core/same_file.h"
#include "core/version.h"
#include "data/document_split.h"
#include "data/token_file.h"
#include "infer/text_cut.h"
#include "infer/tokenize/byte_count.h"
#include "infer/tokenize/encoder.h"
#include "infer/tokenize/json_line.h"
#include "infer/tokenize/piece_reader.h"
#include "infer/tokenize/sources.h"
#include "infer/tokenize/tokenizer_choice.h"
#include "infer/tokenizer.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kTrainingSample = std::uint64_t{6} << 20;  // bytes that SentencePiece sees
constexpr std::size_t kPieceSize = 65536;
constexpr int kMostThreads = 1024;

std::uint64_t bytes_of(const std::vector<Source>& sources) {
  std::uint64_t bytes = 0;
  for (const Source& source : sources) bytes += source.file.bytes;
  return bytes;
}

bool is_blank(std::string_view line) { return line.find_first_not_of(" \t\r") == line.npos; }

// A share of every stretch of the texts, so that all kinds are in it.
class TrainingSample {
 public:
  explicit TrainingSample(std::uint64_t total)
      : keep_(total <= kTrainingSample ? 1.0 : static_cast<double>(kTrainingSample) / static_cast<double>(total)) {}

  void add(std::string text) {
    debt_ += keep_ * static_cast<double>(text.size());
    if (debt_ < static_cast<double>(text.size())) return;
    debt_ -= static_cast<double>(text.size());
    bytes_ += text.size();
    texts_.push_back(std::move(text));
  }

  const std::vector<std::string>& texts() const { return texts_; }
  std::uint64_t bytes() const { return bytes_; }

 private:
  double keep_;
  double debt_ = 0;
  std::uint64_t bytes_ = 0;
  std::vector<std::string> texts_;
};

void sample_json_lines(const TokenizeRequest& request, const Source& source, TrainingSample& sample, ByteCount& read) {
  TextLines lines(open_text(source.file));
  std::string line;
  while (lines.next(line)) {
    read.add(line.size() + 1);
    if (is_blank(line)) continue;
    const std::string where = fmt::format("'{}', line {}", source.name, lines.number());
    if (std::string text = text_of_json_line(line, request.text_key, where); !text.empty()) sample.add(std::move(text));
  }
}

void sample_plain(const Source& source, TrainingSample& sample, ByteCount& read) {
  PieceReader reader(open_text(source.file), kPieceSize);
  std::string piece;
  while (reader.next(piece)) {
    read.add(piece.size());
    refuse_nul(piece, source.name);
    sample.add(std::move(piece));
  }
}

std::unique_ptr<Tokenizer> choose_tokenizer(const TokenizeRequest& request, const TokenizerOption& tokenizer,
                                            const std::vector<Source>& sources, TokenizeSummary& summary) {
  if (tokenizer.form != TokenizerForm::kTrained) return load_tokenizer(tokenizer, request.warn);
  const std::uint64_t total = bytes_of(sources);
  ByteCount read(request.progress, fmt::format("training a vocabulary of {}: read", tokenizer.vocab), total);
  TrainingSample sample(total);
  for (const Source& source : sources) {
    if (source.file.form == TextForm::kJsonLines) {
      sample_json_lines(request, source, sample, read);
    } else {
      sample_plain(source, sample, read);
    }
  }
  summary.training_sample = sample.bytes();
  const std::string model = train_sentencepiece(sample.texts(), {.vocab = tokenizer.vocab});
  return make_tokenizer("sentencepiece", model, "trained model");
}

// How a source was divided.
struct Division {
  std::uint64_t validation_bytes = 0;  // as read: of JSON lines, whole lines
  std::uint64_t forced_cuts = 0;
};

// A document's two parts, where it has both, are a document each. The validation part may begin before
// `training_bytes`, with the line.
Division encode_plain(const Source& source, const Tokenizer& tokenizer, std::uint64_t training_bytes,
                      Encoder& encoder) {
  const Cutter cutter = [&](std::string_view text, std::size_t from) { return find_cut(tokenizer, text, from); };
  PieceReader reader(open_text(source.file), kPieceSize, cutter,
                     training_bytes < source.file.bytes ? training_bytes : kNoBoundary);
  Division division;
  Piece piece;
  bool more = reader.next(piece.text);
  piece.starts_document = true;
  while (more) {
    piece.source = &source.name;
    piece.part = reader.is_past_boundary() ? Part::kValidation : Part::kTraining;
    if (piece.part == Part::kValidation) division.validation_bytes += piece.text.size();
    Piece following;
    more = reader.next(following.text);
    following.starts_document = reader.is_past_boundary() && piece.part == Part::kTraining;
    piece.ends_document = !more || following.starts_document;
    encoder.add(std::move(piece));
    piece = std::move(following);
  }
  division.forced_cuts = reader.forced_cuts();
  return division;
}

// Of all JSON lines of a request, in order, those for validation.
struct HeldOutLines {
  double below;
  std::uint64_t seed;
  std::uint64_t next = 0;

  Part take() { return draw_of(next++, seed) < below ? Part::kValidation : Part::kTraining; }
};

Division encode_json_lines(const Source& source, HeldOutLines& held_out, Encoder& encoder) {
  Division division;
  TextLines lines(open_text(source.file));
  std::string line;
  while (lines.next(line)) {
    if (is_blank(line)) continue;
    const Part part = held_out.take();
    if (part == Part::kValidation) division.validation_bytes += line.size() + 1;
    encoder.add({.text = std::move(line),
                 .part = part,
                 .starts_document = true,
                 .ends_document = true,
                 .source = &source.name,
                 .line = lines.number()});
  }
  return division;
}

using Json = nlohmann::ordered_json;

std::string one_json_line(const Json& object) {
  return object.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string provenance_of(const Source& source, const Division& division) {
  Json all = {{"path", source.name}, {"bytes", source.file.bytes}, {"validation_bytes", division.validation_bytes}};
  if (source.file.form == TextForm::kJsonLines) {
    all["form"] = "json lines";
    all["lines"] = source.file.documents;
  }
  if (source.file.compression != Compression::kNone) all["compression"] = name_of(source.file.compression);
  if (source.file.encoding != TextEncoding::kUtf8) all["encoding"] = "utf-16";
  return one_json_line(all);
}

// Of what was passed over or replaced; a line behind those of the files, where there is something to say.
void add_remarks(const TokenizeSummary& summary, TokenFileWriter& writer) {
  Json remarks = Json::object();
  const auto add = [&](const char* name, std::uint64_t count) {
    if (count > 0) remarks[name] = count;
  };
  add("repeated_files", summary.repeated_files);
  add("hidden_files", summary.hidden_files);
  add("skipped_links", summary.skipped_links);
  add("empty_documents", summary.empty_documents);
  add("ill_formed_bytes", summary.ill_formed_bytes);
  add("forced_cuts", summary.forced_cuts);
  if (!remarks.empty()) writer.add_provenance(one_json_line(remarks));
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

void encode_all(const TokenizeRequest& request, const std::vector<Source>& sources, const Tokenizer& tokenizer,
                int threads, TokenFileWriter& writer, TokenizeSummary& summary) {
  std::vector<std::uint64_t> sizes;
  std::uint64_t lines = 0;
  for (const Source& source : sources) {
    const bool is_plain = source.file.form == TextForm::kPlain;
    sizes.push_back(is_plain ? source.file.bytes : 0);
    lines += is_plain ? 0 : source.file.documents;
  }
  const std::vector<std::uint64_t> training = split_documents(sizes, request.valid_fraction, request.seed);
  HeldOutLines held_out{held_out_below(lines, request.valid_fraction, request.seed), request.seed};
  Encoder encoder(tokenizer, writer,
                  {.threads = threads, .text_key = request.text_key, .refuses_nul = tokenizer.kind() != "bytes"},
                  ByteCount(request.progress, "encoded", bytes_of(sources)));
  for (std::size_t i = 0; i < sources.size(); ++i) {
    const bool is_plain = sources[i].file.form == TextForm::kPlain;
    const Division division = is_plain ? encode_plain(sources[i], tokenizer, training[i], encoder)
                                       : encode_json_lines(sources[i], held_out, encoder);
    summary.forced_cuts += division.forced_cuts;
    writer.add_provenance(provenance_of(sources[i], division));
  }
  encoder.flush();
  summary.documents = encoder.counts().documents;
  summary.empty_documents = encoder.counts().empty;
  summary.bytes = encoder.counts().text_bytes;
  summary.ill_formed_bytes = encoder.counts().ill_formed_bytes;
}

}  // namespace

TokenizeSummary tokenize(const TokenizeRequest& request) {
  const auto start = std::chrono::steady_clock::now();
  const TokenizerOption named = parse_tokenizer(request.tokenizer, TokenizerTraining::kOffered);
  check(request, named);
  const int threads = request.threads > 0 ? request.threads : omp_get_max_threads();
  const Sources found(request);
  const std::vector<Source>& sources = found.all();
  TokenizeSummary summary{.files = sources.size(),
                          .repeated_files = found.repeated(),
                          .hidden_files = found.hidden(),
                          .skipped_links = found.skipped_links()};
  if (bytes_of(sources) == 0) reject_input("--input: {} files, all of them empty", sources.size());
  const std::unique_ptr<Tokenizer> tokenizer = choose_tokenizer(request, named, sources, summary);
  summary.vocab = tokenizer->vocab();

  TokenFileWriter writer(request.output, {.vocab = tokenizer->vocab(),
                                          .tokenizer_kind = tokenizer->kind(),
                                          .tokenizer_model = tokenizer->serialized(),
                                          .created_by = program_and_version()});
  encode_all(request, sources, *tokenizer, threads, writer, summary);
  add_remarks(summary, writer);
  writer.finish();
  if (!request.save_model.empty()) write_file_atomically(request.save_model, tokenizer->serialized());
  summary.training_tokens = writer.count(Part::kTraining);
  summary.validation_tokens = writer.count(Part::kValidation);
  summary.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return summary;
}

}  // namespace kvloom
