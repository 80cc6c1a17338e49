// Records of a data set as it is published: JSON lines, one JSON array, comma- or tab-separated values.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace kvloom {

struct SourceRecord {
  nlohmann::ordered_json fields;  // an object; of separated values, texts by the names in the first line
  std::string place;              // "file, line 3"
};

// The form is that of the extension: .csv, .tsv, else JSON. Throws InputError naming the file and the line.
std::vector<SourceRecord> read_records(const std::filesystem::path& path);

// Comma-separated values as RFC 4180 has them: quoted fields may hold commas, newlines and doubled quotes. Of
// tab-separated ones a quote is a character like others. Each row with the line that it begins on.
struct SeparatedRow {
  std::size_t line;
  std::vector<std::string> cells;
};
std::vector<SeparatedRow> parse_comma_separated(const std::string& text, const std::string& where);
std::vector<SeparatedRow> parse_tab_separated(const std::string& text);

// The lines of a file of labels, without white space around and without empty ones.
std::vector<std::string> read_labels(const std::filesystem::path& path);

}  // namespace kvloom
