#include "core/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <unordered_set>
#include <utility>

#include "core/rectangle.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

using Json = nlohmann::json;

static_assert(std::endian::native == std::endian::little, "safetensors is little-endian, and so is what we map");

constexpr std::size_t kLengthBytes = 8;
constexpr std::uint64_t kLargestHeader = 100'000'000;  // the reference implementation's limit
constexpr int kDeepestHeader = 3;                      // header, tensor, list
constexpr std::string_view kMetadataKey = "__metadata__";

struct StoredDType {
  std::string_view name;
  std::size_t bytes;
  std::optional<DType> dtype;
};

constexpr std::array kStoredDTypes = {StoredDType{"F32", 4, DType::kF32},      StoredDType{"BF16", 2, DType::kBF16},
                                      StoredDType{"F16", 2, DType::kF16},      StoredDType{"F64", 8, DType::kF64},
                                      StoredDType{"I64", 8, DType::kI64},      StoredDType{"I32", 4, DType::kI32},
                                      StoredDType{"U8", 1, DType::kU8},        StoredDType{"U16", 2, DType::kU16},
                                      StoredDType{"U32", 4, DType::kU32},      StoredDType{"I8", 1, std::nullopt},
                                      StoredDType{"I16", 2, std::nullopt},     StoredDType{"U64", 8, std::nullopt},
                                      StoredDType{"BOOL", 1, std::nullopt},    StoredDType{"F8_E4M3", 1, std::nullopt},
                                      StoredDType{"F8_E5M2", 1, std::nullopt}, StoredDType{"C64", 8, std::nullopt}};

const StoredDType& stored_dtype_named(std::string_view name, const std::string& where, const std::string& tensor) {
  const auto found =
      std::find_if(kStoredDTypes.begin(), kStoredDTypes.end(), [&](const auto& d) { return d.name == name; });
  if (found == kStoredDTypes.end()) reject_input("{}: tensor {} has unknown dtype '{}'", where, tensor, name);
  return *found;
}

std::string_view stored_name_of(DType dtype) {
  return std::find_if(kStoredDTypes.begin(), kStoredDTypes.end(), [&](const auto& d) { return d.dtype == dtype; })
      ->name;
}

// Refuses what JSON allows and no header has: a name given twice, nesting without end.
Json parse_json(std::string_view text, const std::string& where) {
  std::unordered_set<std::string> names;
  const auto look = [&](int depth, Json::parse_event_t event, Json& value) {
    if (event == Json::parse_event_t::key && depth == 1 && !names.insert(value.get<std::string>()).second) {
      reject_input("{}: tensor {} is listed twice", where, value.get<std::string>());
    }
    const bool opens = event == Json::parse_event_t::object_start || event == Json::parse_event_t::array_start;
    if (opens && depth >= kDeepestHeader) reject_input("{}: its header is nested too deep", where);
    return true;
  };
  try {
    return Json::parse(text.begin(), text.end(), look);
  } catch (const Json::exception& error) {
    reject_input("{}: its header is no JSON: {}", where, error.what());
  }
}

const Json& field(const Json& entry, const char* key, const std::string& where, const std::string& tensor) {
  const auto found = entry.find(key);
  if (found == entry.end()) reject_input("{}: tensor {} has no {}", where, tensor, key);
  return *found;
}

std::vector<std::int64_t> numbers(const Json& list, const char* key, const std::string& where,
                                  const std::string& tensor) {
  const auto is_number = [](const Json& item) {
    return item.is_number_unsigned() &&
           item.get<std::uint64_t>() <= static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  };
  if (!list.is_array() || !std::all_of(list.begin(), list.end(), is_number)) {
    reject_input("{}: tensor {}: {} must be a list of whole numbers", where, tensor, key);
  }
  return list.get<std::vector<std::int64_t>>();
}

SafetensorsEntry parse_entry(const std::string& name, const Json& entry, const std::string& where) {
  if (!entry.is_object()) reject_input("{}: tensor {} is described by no JSON object", where, name);
  const Json& dtype = field(entry, "dtype", where, name);
  if (!dtype.is_string()) reject_input("{}: tensor {}: dtype must be a string", where, name);
  const StoredDType& stored = stored_dtype_named(dtype.get_ref<const std::string&>(), where, name);
  Shape shape = numbers(field(entry, "shape", where, name), "shape", where, name);
  const std::vector<std::int64_t> ends =
      numbers(field(entry, "data_offsets", where, name), "data_offsets", where, name);
  const auto count = checked_element_count(shape);
  if (!count) reject_input("{}: tensor {}: its shape {} makes no sense", where, name, to_string(shape));
  const std::uint64_t bytes = static_cast<std::uint64_t>(*count) * stored.bytes;
  if (ends.size() != 2 || ends[1] < ends[0] || static_cast<std::uint64_t>(ends[1] - ends[0]) != bytes) {
    reject_input("{}: tensor {} of dtype {} and shape {} takes {} bytes; its data_offsets {} do not", where, name,
                 stored.name, to_string(shape), bytes, to_string(ends));
  }
  return {name, std::string(stored.name), stored.dtype, std::move(shape), static_cast<std::uint64_t>(ends[0]), bytes};
}

void parse_metadata(const Json& metadata, std::map<std::string, std::string>& into, const std::string& where) {
  if (!metadata.is_object()) reject_input("{}: {} must be a JSON object", where, kMetadataKey);
  for (const auto& [key, value] : metadata.items()) {
    if (!value.is_string()) reject_input("{}: {}: '{}' must be a string", where, kMetadataKey, key);
    into[key] = value.get<std::string>();
  }
}

void check_filled(std::span<const SafetensorsEntry> sorted, std::uint64_t data_bytes, const std::string& where) {
  std::uint64_t filled = 0;
  for (const SafetensorsEntry& entry : sorted) {
    if (entry.begin != filled) {
      reject_input("{}: tensor {} begins at byte {}; {} would leave no gap or overlap", where, entry.name, entry.begin,
                   filled);
    }
    filled += entry.bytes;
    if (filled > data_bytes) {
      reject_input("{} is truncated: tensor {} ends at byte {} of {}", where, entry.name, filled, data_bytes);
    }
  }
  if (filled != data_bytes)
    reject_input("{} has {} bytes of tensors where its header has {}", where, data_bytes, filled);
}

std::uint64_t header_length(std::span<const std::byte> content, const std::string& where) {
  if (content.size() < kLengthBytes) reject_input("{} has {} bytes: no safetensors file", where, content.size());
  std::uint64_t length = 0;
  std::memcpy(&length, content.data(), kLengthBytes);
  if (length > kLargestHeader) {
    reject_input("{} is no safetensors file: its header would have {} bytes, at most {} are allowed", where, length,
                 kLargestHeader);
  }
  if (length > content.size() - kLengthBytes) {
    reject_input("{} is truncated: its header has {} bytes, {} are there", where, length,
                 content.size() - kLengthBytes);
  }
  return length;
}

std::uint64_t bytes_of(const SafetensorsTensor& tensor) {
  return static_cast<std::uint64_t>(element_count(tensor.shape)) * size_of(tensor.dtype);
}

// With its length in front and spaces behind, so that the tensors begin at a multiple of eight.
std::string make_header(std::span<const SafetensorsTensor> tensors,
                        const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header[std::string(kMetadataKey)] = metadata;
  std::uint64_t begin = 0;
  for (const SafetensorsTensor& tensor : tensors) {
    if (!checked_element_count(tensor.shape)) {
      reject_input("safetensors: tensor {}: its shape {} makes no sense", tensor.name, to_string(tensor.shape));
    }
    if (tensor.name == kMetadataKey || header.contains(tensor.name)) {
      reject_input("safetensors: tensor name {} is taken", tensor.name);
    }
    const std::uint64_t end = begin + bytes_of(tensor);
    header[tensor.name] = {
        {"dtype", stored_name_of(tensor.dtype)}, {"shape", tensor.shape}, {"data_offsets", {begin, end}}};
    begin = end;
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const Json::exception& error) {
    reject_input("safetensors: a name is not UTF-8: {}", error.what());
  }
  text.resize((text.size() + kLengthBytes - 1) / kLengthBytes * kLengthBytes, ' ');
  const std::uint64_t length = text.size();
  text.insert(0, reinterpret_cast<const char*>(&length), kLengthBytes);
  return text;
}

}  // namespace

SafetensorsHeader parse_safetensors_header(std::string_view json, std::uint64_t data_bytes, const std::string& where) {
  const Json parsed = parse_json(json, where);
  if (!parsed.is_object()) reject_input("{}: its header is no JSON object", where);
  SafetensorsHeader header;
  for (const auto& [name, entry] : parsed.items()) {
    if (name == kMetadataKey) {
      parse_metadata(entry, header.metadata, where);
    } else {
      header.tensors.push_back(parse_entry(name, entry, where));
    }
  }
  // A tensor without elements comes before the one that begins at the same byte.
  std::sort(header.tensors.begin(), header.tensors.end(), [](const auto& one, const auto& other) {
    return std::pair(one.begin, one.bytes) < std::pair(other.begin, other.bytes);
  });
  check_filled(header.tensors, data_bytes, where);
  return header;
}

SafetensorsFile::SafetensorsFile(std::filesystem::path path) : path_(std::move(path)), content_(path_) {
  const std::uint64_t length = header_length(content_.bytes(), path_.string());
  data_begin_ = kLengthBytes + length;
  const std::string_view json(reinterpret_cast<const char*>(content_.bytes().data()) + kLengthBytes, length);
  header_ = parse_safetensors_header(json, content_.bytes().size() - data_begin_, path_.string());
  for (std::size_t i = 0; i < header_.tensors.size(); ++i) index_[header_.tensors[i].name] = i;
}

const SafetensorsEntry& SafetensorsFile::tensor(const std::string& name) const {
  const auto found = index_.find(name);
  if (found == index_.end()) reject_input("{} has no tensor {}", path_.string(), name);
  return header_.tensors[found->second];
}

std::span<const std::byte> SafetensorsFile::data(const SafetensorsEntry& entry) const {
  return content_.bytes().subspan(data_begin_ + entry.begin, entry.bytes);
}

std::span<const std::byte> SafetensorsFile::behind(std::span<const std::byte> part, std::size_t count) const {
  const auto end = static_cast<std::size_t>(part.data() + part.size() - content_.bytes().data());
  return content_.bytes().subspan(end, std::min(count, content_.bytes().size() - end));
}

SafetensorsWriter::SafetensorsWriter(std::filesystem::path path, std::vector<SafetensorsTensor> tensors,
                                     const std::map<std::string, std::string>& metadata)
    : tensors_(std::move(tensors)), file_(std::move(path)) {
  const std::string header = make_header(tensors_, metadata);
  file_.write(std::as_bytes(std::span(header)));
  if (!tensors_.empty()) wanted_ = bytes_of(tensors_[0]);
  skip_finished();
}

void SafetensorsWriter::append(const std::string& name, std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  if (next_ == tensors_.size() || tensors_[next_].name != name) {
    fail("safetensors: bytes of tensor {} where those of {} come", name,
         next_ == tensors_.size() ? "none" : tensors_[next_].name);
  }
  if (bytes.size() > wanted_) {
    fail("safetensors: {} bytes for tensor {}, which wants {} more", bytes.size(), name, wanted_);
  }
  file_.write(bytes);
  wanted_ -= bytes.size();
  skip_finished();
}

void SafetensorsWriter::finish() {
  if (next_ != tensors_.size()) fail("safetensors: tensor {} wants {} more bytes", tensors_[next_].name, wanted_);
  file_.commit();
}

void SafetensorsWriter::skip_finished() {
  while (next_ < tensors_.size() && wanted_ == 0) {
    ++next_;
    if (next_ < tensors_.size()) wanted_ = bytes_of(tensors_[next_]);
  }
}

}  // namespace kvloom
