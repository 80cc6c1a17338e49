#include "data/token_file.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>

#include "core/checksum.h"
#include "data/token_file_format.h"

namespace kvloom {
namespace {

constexpr std::size_t kPrefix = kTokenFileMagic.size() + sizeof(std::uint32_t);
constexpr std::array<const char*, 2> kTokenNames = {"tokens", "validation/tokens"};
constexpr std::array<const char*, 2> kDocumentNames = {"documents", "validation/documents"};

std::size_t index_of(Part part) { return static_cast<std::size_t>(part); }

std::size_t blocks_in(std::size_t bytes) { return (bytes + kTokenFileBlock - 1) / kTokenFileBlock; }

// [magic][length u32][TokenFileHeader][checksum u64 of all before].
proto::TokenFileHeader parse_header(const std::filesystem::path& path, std::span<const std::byte> bytes) {
  if (bytes.size() < kTokenFileUserBlock ||
      std::memcmp(bytes.data(), kTokenFileMagic.data(), kTokenFileMagic.size()) != 0) {
    reject_input("'{}' is no token file; make one with kvloom tokenize", path.string());
  }
  std::uint32_t length = 0;
  std::memcpy(&length, bytes.data() + kTokenFileMagic.size(), sizeof length);
  std::uint64_t stored = 0;
  if (length > kTokenFileUserBlock - kPrefix - sizeof stored)
    reject_input("'{}': its header is damaged", path.string());
  std::memcpy(&stored, bytes.data() + kPrefix + length, sizeof stored);
  proto::TokenFileHeader header;
  if (checksum(bytes.first(kPrefix + length)) != stored ||
      !header.ParseFromArray(bytes.data() + kPrefix, static_cast<int>(length))) {
    reject_input("'{}': its header is damaged", path.string());
  }
  if (header.format() != 1) reject_input("'{}': format {}; this kvloom reads 1", path.string(), header.format());
  if (header.file_bytes() != bytes.size()) {
    reject_input("'{}' has {} bytes of {}; it is truncated or was changed", path.string(), bytes.size(),
                 header.file_bytes());
  }
  return header;
}

}  // namespace

TokenFile::TokenFile(const std::filesystem::path& path)
    : path_(path), file_(path), header_(parse_header(path, file_.bytes())) {
  if (header_.dtype() != "u16" && header_.dtype() != "u32") {
    reject_input("'{}': tokens of dtype '{}'", path_.string(), header_.dtype());
  }
  dtype_ = header_.dtype() == "u16" ? DType::kU16 : DType::kU32;
  for (std::size_t part = 0; part < 2; ++part) tokens_[part] = dataset(kTokenNames[part]);
  checksums_ = dataset("checksums");
  first_block_ = {0, blocks_in(tokens_[0].size())};
  const std::size_t blocks = first_block_[1] + blocks_in(tokens_[1].size());
  if (checksums_.size() != blocks * sizeof(std::uint64_t)) {
    reject_input("'{}': {} bytes of checksums for {} blocks", path_.string(), checksums_.size(), blocks);
  }
  checked_ = std::vector<std::atomic<bool>>(blocks);
}

std::span<const std::byte> TokenFile::dataset(const std::string& name) const {
  for (const proto::TokenFileDataset& entry : header_.datasets()) {
    if (entry.name() != name) continue;
    const std::size_t size = file_.bytes().size();
    if (entry.offset() > size || entry.bytes() > size - entry.offset()) {
      reject_input("'{}': dataset '{}' lies outside of the file", path_.string(), name);
    }
    const auto bytes = file_.bytes().subspan(entry.offset(), entry.bytes());
    const bool has_blocks = name == kTokenNames[0] || name == kTokenNames[1];
    if (!has_blocks && checksum(bytes) != entry.checksum()) {
      reject_input("'{}': dataset '{}' is damaged", path_.string(), name);
    }
    return bytes;
  }
  reject_input("'{}': has no dataset '{}'", path_.string(), name);
}

std::int64_t TokenFile::count(Part part) const {
  return static_cast<std::int64_t>(tokens_[index_of(part)].size() / size_of(dtype_));
}

std::int64_t TokenFile::documents(Part part) const {
  return static_cast<std::int64_t>(dataset(kDocumentNames[index_of(part)]).size() / sizeof(std::uint64_t));
}

std::uint64_t TokenFile::text_bytes(Part part) const {
  return part == Part::kTraining ? header_.training_text_bytes() : header_.validation_text_bytes();
}

std::string TokenFile::identity() const { return fmt::format("{:016x}", header_.identity()); }

std::string TokenFile::tokenizer_model() const {
  const auto bytes = dataset("tokenizer");
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::string TokenFile::provenance() const {
  const auto bytes = dataset("provenance");
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

void TokenFile::check_blocks(Part part, std::uint64_t first_byte, std::uint64_t last_byte) const {
  const std::span<const std::byte> bytes = tokens_[index_of(part)];
  for (std::uint64_t block = first_byte / kTokenFileBlock; block <= last_byte / kTokenFileBlock; ++block) {
    const std::size_t number = first_block_[index_of(part)] + block;
    if (checked_[number].load(std::memory_order_relaxed)) continue;
    std::uint64_t stored = 0;
    std::memcpy(&stored, checksums_.data() + number * sizeof stored, sizeof stored);
    const std::size_t begin = block * kTokenFileBlock;
    if (checksum(bytes.subspan(begin, std::min(kTokenFileBlock, bytes.size() - begin))) != stored) {
      reject_input("'{}': block {} of '{}' is damaged", path_.string(), block, kTokenNames[index_of(part)]);
    }
    checked_[number].store(true, std::memory_order_relaxed);
  }
}

void TokenFile::read(Part part, std::int64_t begin, std::span<std::int32_t> out) const {
  const auto size = static_cast<std::int64_t>(out.size());
  if (begin < 0 || begin + size > count(part)) {
    fail("'{}': tokens [{}, {}) of {}", path_.string(), begin, begin + size, count(part));
  }
  if (out.empty()) return;
  const std::size_t width = size_of(dtype_);
  const std::uint64_t first = static_cast<std::uint64_t>(begin) * width;
  check_blocks(part, first, first + out.size() * width - 1);
  const std::byte* data = tokens_[index_of(part)].data() + first;
  for (std::size_t i = 0; i < out.size(); ++i) {
    std::uint32_t token = 0;
    std::memcpy(&token, data + i * width, width);
    if (token >= header_.vocab()) {
      reject_input("'{}': token {} is {}; the vocabulary ends at {}", path_.string(),
                   begin + static_cast<std::int64_t>(i), token, header_.vocab());
    }
    out[i] = static_cast<std::int32_t>(token);
  }
}

void TokenFile::verify_all(int threads, const std::function<void(const VerifyProgress&)>& progress) const {
  for (const proto::TokenFileDataset& entry : header_.datasets()) dataset(entry.name());
  VerifyProgress done{.bytes = 0, .of_bytes = tokens_[0].size() + tokens_[1].size()};
  std::vector<std::exception_ptr> faults(checked_.size());
  std::atomic<std::size_t> next = 0;
  std::mutex mutex;
  const auto work = [&] {
    for (std::size_t number = next++; number < faults.size(); number = next++) {
      const Part part = number < first_block_[1] ? Part::kTraining : Part::kValidation;
      const std::uint64_t begin = (number - first_block_[index_of(part)]) * kTokenFileBlock;
      const std::uint64_t end = std::min<std::uint64_t>(begin + kTokenFileBlock, tokens_[index_of(part)].size());
      try {
        check_blocks(part, begin, end - 1);
      } catch (...) {
        faults[number] = std::current_exception();
      }
      const std::scoped_lock lock(mutex);
      done.bytes += end - begin;
      if (progress) progress(done);
    }
  };
  std::vector<std::thread> workers;
  for (int i = 0; i < std::max(1, threads); ++i) workers.emplace_back(work);
  for (std::thread& worker : workers) worker.join();
  for (const std::exception_ptr& fault : faults) {
    if (fault) std::rethrow_exception(fault);
  }
}

}  // namespace kvloom
