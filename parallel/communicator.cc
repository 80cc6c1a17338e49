#include "parallel/communicator.h"

#include <algorithm>

#include "kernels/error.h"

namespace kvloom {
namespace {

std::span<const std::uint8_t> bytes_of(const std::string& text) {
  return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
}

std::span<std::uint8_t> writable_bytes_of(std::string& text) {
  return {reinterpret_cast<std::uint8_t*>(text.data()), text.size()};
}

}  // namespace

void wait_all(std::span<Transfer> transfers) {
  for (Transfer& transfer : transfers) transfer.wait();
}

std::unique_ptr<Communicator> Communicator::split(int color, int key) {
  if (color < 0) fail("split: color {} on rank {}; a color is 0 or more", color, rank());
  return do_split(color, key);
}

std::uint64_t Communicator::sent_bytes(int tag) const {
  const auto found = sent_bytes_.find(tag);
  return found == sent_bytes_.end() ? 0 : found->second;
}

std::uint64_t Communicator::given_bytes(Collective collective) const {
  return given_bytes_.at(static_cast<std::size_t>(collective));
}

void Communicator::require_peer(const char* operation, int peer) const {
  if (peer < 0 || peer >= size())
    fail("{}: rank {} names peer {}; there are {} ranks", operation, rank(), peer, size());
}

void Communicator::require_message(const char* operation, int peer, int tag) const {
  require_peer(operation, peer);
  if (tag < 0 || tag > kLargestTag) {
    fail("{}: rank {} uses tag {} with peer {}; tags are 0 to {}", operation, rank(), tag, peer, kLargestTag);
  }
}

void Communicator::require_counts(const char* operation, std::size_t given, std::size_t wanted) const {
  if (given == wanted) return;
  fail("{}: rank {} of {} brings a buffer of {} elements; the other one asks for {}", operation, rank(), size(), given,
       wanted);
}

std::vector<std::string> all_gather_bytes(Communicator& communicator, const std::string& bytes) {
  const auto ranks = static_cast<std::size_t>(communicator.size());
  const std::vector<std::int64_t> own{static_cast<std::int64_t>(bytes.size())};
  std::vector<std::int64_t> lengths(ranks);
  communicator.all_gather(own, std::span(lengths));

  const auto longest = static_cast<std::size_t>(*std::max_element(lengths.begin(), lengths.end()));
  std::string padded = bytes;
  padded.resize(longest);
  std::string gathered(longest * ranks, '\0');
  communicator.all_gather(bytes_of(padded), writable_bytes_of(gathered));

  std::vector<std::string> parts(ranks);
  for (std::size_t r = 0; r < ranks; ++r) {
    parts[r] = gathered.substr(r * longest, static_cast<std::size_t>(lengths[r]));
  }
  return parts;
}

std::string broadcast_bytes(Communicator& communicator, const std::string& bytes, int root) {
  std::vector<std::int64_t> length{static_cast<std::int64_t>(bytes.size())};
  communicator.broadcast(std::span(length), root);
  std::string result = bytes;
  result.resize(static_cast<std::size_t>(length[0]));
  communicator.broadcast(writable_bytes_of(result), root);
  return result;
}

}  // namespace kvloom
