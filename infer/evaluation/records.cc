#include "infer/evaluation/records.h"

#include <algorithm>
#include <utility>

#include "core/file.h"
#include "infer/evaluation/json_record.h"
#include "infer/text/python_text.h"
#include "infer/unicode.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::uint64_t kLargestFile = std::uint64_t{4} << 30;
constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";

std::string read_text(const std::filesystem::path& path) {
  std::string text = read_file(path, kLargestFile);
  if (text.starts_with(kByteOrderMark)) text.erase(0, kByteOrderMark.size());
  if (!is_well_formed(text)) reject_input("'{}': is no UTF-8", path.string());
  return text;
}

std::vector<std::string_view> lines_of(std::string_view text) {
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    std::string_view line = text.substr(0, end);
    if (line.ends_with('\r')) line.remove_suffix(1);
    lines.push_back(line);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  }
  return lines;
}

std::vector<SourceRecord> records_of_array(const std::string& text, const std::string& file) {
  const Json array = Json::parse(text, nullptr, false);
  if (!array.is_array()) reject_input("'{}': begins as a JSON array and is none", file);
  std::vector<SourceRecord> records;
  for (const Json& object : array) {
    std::string place = fmt::format("{}, record {}", file, records.size() + 1);
    if (!object.is_object()) reject_input("{}: is no JSON object", place);
    records.push_back({object, std::move(place)});
  }
  return records;
}

std::vector<SourceRecord> records_of_json(const std::string& text, const std::string& file) {
  if (stripped(text).starts_with('[')) return records_of_array(text, file);
  std::vector<SourceRecord> records;
  std::size_t number = 0;
  for (const std::string_view line : lines_of(text)) {
    ++number;
    if (stripped(line).empty()) continue;
    std::string place = fmt::format("{}, line {}", file, number);
    Json object = parse_json_object(line, place);
    records.push_back({std::move(object), std::move(place)});
  }
  return records;
}

std::vector<SourceRecord> records_of_rows(const std::vector<SeparatedRow>& rows, const std::string& file) {
  if (rows.empty()) return {};
  const std::vector<std::string>& names = rows.front().cells;
  std::vector<SourceRecord> records;
  for (const SeparatedRow& row : std::span(rows).subspan(1)) {
    SourceRecord record{Json::object(), fmt::format("{}, line {}", file, row.line)};
    if (row.cells.size() != names.size()) {
      reject_input("{}: {} fields; the first line names {}", record.place, row.cells.size(), names.size());
    }
    for (std::size_t i = 0; i < names.size(); ++i) record.fields[names[i]] = row.cells[i];
    records.push_back(std::move(record));
  }
  return records;
}

// Reads comma-separated values a field at a time.
class CommaReader {
 public:
  CommaReader(const std::string& text, const std::string& where) : text_(text), where_(where) {}

  std::vector<SeparatedRow> rows() {
    std::vector<SeparatedRow> rows;
    while (at_ < text_.size()) {
      SeparatedRow row{line_, {}};
      do {
        row.cells.push_back(text_[at_] == '"' ? quoted() : plain());
      } while (takes(','));
      takes('\r');
      if (at_ < text_.size() && !takes('\n')) {
        reject_input("{}, line {}: a quoted field goes on behind its quote", where_, line_);
      }
      ++line_;
      if (row.cells.size() > 1 || !row.cells.front().empty()) rows.push_back(std::move(row));
    }
    return rows;
  }

 private:
  bool takes(char c) {
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }

  std::string plain() {
    std::size_t end = std::min(text_.find_first_of(",\n", at_), text_.size());
    std::string cell = text_.substr(at_, end - at_);
    at_ = end;
    if (at_ < text_.size() && text_[at_] == '\n' && cell.ends_with('\r')) cell.pop_back();
    return cell;
  }

  std::string quoted() {
    const std::size_t first_line = line_;
    std::string cell;
    for (++at_; at_ < text_.size(); ++at_) {
      if (text_[at_] == '"' && !(at_ + 1 < text_.size() && text_[at_ + 1] == '"')) {
        ++at_;
        return cell;
      }
      if (text_[at_] == '"') ++at_;
      if (text_[at_] == '\n') ++line_;
      cell += text_[at_];
    }
    reject_input("{}, line {}: a quoted field does not end", where_, first_line);
  }

  const std::string& text_;
  const std::string& where_;
  std::size_t at_ = 0;
  std::size_t line_ = 1;
};

}  // namespace

std::vector<SeparatedRow> parse_comma_separated(const std::string& text, const std::string& where) {
  return CommaReader(text, where).rows();
}

std::vector<SeparatedRow> parse_tab_separated(const std::string& text) {
  std::vector<SeparatedRow> rows;
  std::size_t number = 0;
  for (std::string_view line : lines_of(text)) {
    ++number;
    if (line.empty()) continue;
    SeparatedRow& row = rows.emplace_back(SeparatedRow{number, {}});
    for (std::size_t end = 0; end != std::string_view::npos;) {
      end = line.find('\t');
      row.cells.emplace_back(line.substr(0, end));
      if (end != std::string_view::npos) line.remove_prefix(end + 1);
    }
  }
  return rows;
}

std::vector<SourceRecord> read_records(const std::filesystem::path& path) {
  const std::string text = read_text(path);
  const std::string file = path.string();
  std::vector<SourceRecord> records;
  if (path.extension() == ".csv") {
    records = records_of_rows(parse_comma_separated(text, file), file);
  } else if (path.extension() == ".tsv") {
    records = records_of_rows(parse_tab_separated(text), file);
  } else {
    records = records_of_json(text, file);
  }
  if (records.empty()) reject_input("'{}': holds no records", file);
  return records;
}

std::vector<std::string> read_labels(const std::filesystem::path& path) {
  const std::string text = read_text(path);
  std::vector<std::string> labels;
  for (const std::string_view line : lines_of(text)) {
    if (const std::string_view label = stripped(line); !label.empty()) labels.emplace_back(label);
  }
  return labels;
}

}  // namespace kvloom
