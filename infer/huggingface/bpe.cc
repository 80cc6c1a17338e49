#include "infer/huggingface/bpe.h"

#include <algorithm>

#include "infer/unicode.h"

namespace kvloom::huggingface {
namespace {

constexpr std::string_view kSpaceMark = "\xe2\x96\x81";  // U+2581, how pieces write a space
constexpr std::size_t kFewSymbols = 48;                  // up to here, looking through all pairs is faster than a queue

std::size_t character_bytes(std::string_view text, std::size_t at) {
  const auto first = static_cast<unsigned char>(text[at]);
  return first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
}

// See Bpe::kKinds.
std::size_t kind_of(std::string_view character) {
  const auto first = static_cast<unsigned char>(character[0]);
  if (first < 0x80) return first;
  return character == kSpaceMark ? 128 : 129;
}

std::pair<std::string, std::string> read_merge(const JsonNode& node) {
  if (node.value().is_array()) {
    if (node.value().size() != 2) node.reject("has {} parts; right are two", node.value().size());
    const std::vector<JsonNode> parts = node.items();
    return {parts[0].text(), parts[1].text()};
  }
  const std::string& text = node.text();
  const std::size_t space = text.find(' ');
  if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) {
    node.reject("'{}'; right are two tokens and a space between", text.substr(0, 80));
  }
  return {text.substr(0, space), text.substr(space + 1)};
}

void refuse_unsupported(const JsonNode& model) {
  if (const std::string type = model.text_or("type", "BPE"); type != "BPE") {
    model.reject("type '{}'; kvloom knows BPE", type);
  }
  if (model.has("dropout") && model.at("dropout").value() != 0) {
    model.at("dropout").reject("{}; right is null: encoding is not random", model.at("dropout").shown());
  }
  for (const char* name : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!model.text_or(name, "").empty()) {
      model.at(name).reject("'{}' is not supported; right is null", model.at(name).text().substr(0, 40));
    }
  }
}

}  // namespace

Bpe::Bpe(const JsonNode& model) : vocabulary_((refuse_unsupported(model), model.at("vocab"))) {
  if (vocabulary_.count() == 0) model.at("vocab").reject("is empty");
  ignore_merges_ = model.truth_or("ignore_merges", false);
  fuse_unknown_ = model.truth_or("fuse_unk", false);
  if (model.has("unk_token")) {
    const JsonNode name = model.at("unk_token");
    unknown_ = vocabulary_.find(name.text());
    if (unknown_ < 0) name.reject("'{}' is not in the vocabulary", name.text().substr(0, 80));
  }
  read_fallback(model);
  read_merges(model.at("merges"));
  read_bytes();
}

void Bpe::read_merges(const JsonNode& node) {
  const std::vector<JsonNode> merges = node.items();
  pairs_.reserve(merges.size());
  // Where no character is without symbols, as its neighbours would meet then, and the bytes of unknown ones do not
  // merge, words can be cut where no merge joins.
  cuts_ = !ignore_merges_ && std::ranges::all_of(fallback_, [](std::int32_t id) { return id >= 0; });
  std::uint32_t rank = 0;
  for (const JsonNode& merge : merges) {
    if (merge.value().is_string() && merge.text().starts_with("#version")) continue;
    const auto [left, right] = read_merge(merge);
    const auto id_of = [&](const std::string& token) {
      const std::int32_t id = vocabulary_.find(token);
      if (id < 0) merge.reject("'{}' is not in the vocabulary", token.substr(0, 80));
      return id;
    };
    const std::int32_t left_id = id_of(left);
    const std::int32_t right_id = id_of(right);
    const std::string made = left + right;
    if (cuts_ && std::ranges::count(fallback_, left_id) + std::ranges::count(fallback_, right_id) > 0) cuts_ = false;
    pairs_.insert(left_id, right_id, {.rank = rank++, .id = id_of(made)});
    for (std::size_t at = 0, kind = kKinds; at < made.size(); at += character_bytes(made, at)) {
      const std::size_t following = kind_of(std::string_view(made).substr(at, character_bytes(made, at)));
      if (kind < kKinds) joined_.set(kind * kKinds + following);
      kind = following;
    }
  }
}

void Bpe::read_fallback(const JsonNode& model) {
  fallback_.fill(-1);
  if (!model.truth_or("byte_fallback", false)) return;
  for (std::size_t byte = 0; byte < 256; ++byte) fallback_[byte] = vocabulary_.find(fmt::format("<0x{:02X}>", byte));
}

void Bpe::read_bytes() {
  const ByteAlphabet alphabet;
  for (std::size_t byte = 0; byte < 256; ++byte) {
    bytes_[byte] = vocabulary_.find(alphabet.characters_of(std::string(1, static_cast<char>(byte))));
  }
  has_all_bytes_ = std::ranges::all_of(bytes_, [](std::int32_t id) { return id >= 0; });
  for (std::size_t code = 0; code < 128; ++code) {
    ascii_[code] = vocabulary_.find(std::string(1, static_cast<char>(code)));
  }
  if (!ignore_merges_ || !has_all_bytes_) return;
  for (const auto& [token, id] : vocabulary_.ids()) {
    if (const auto bytes = alphabet.bytes_of(token)) words_in_bytes_.emplace(*bytes, id);
  }
}

void Bpe::encode(std::string_view word, BpeUnits units, Scratch& scratch, std::vector<std::int32_t>& ids) const {
  if (units == BpeUnits::kCharacters && cuts_) return encode_cut(word, scratch, ids);
  encode_uncut(word, units, scratch, ids);
}

void Bpe::encode_cut(std::string_view text, Scratch& scratch, std::vector<std::int32_t>& ids) const {
  std::size_t begin = 0;
  std::size_t kind = kKinds;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t bytes = character_bytes(text, at);
    const std::size_t following = kind_of(text.substr(at, bytes));
    if (kind < kKinds && !joined_[kind * kKinds + following]) {
      encode_uncut(text.substr(begin, at - begin), BpeUnits::kCharacters, scratch, ids);
      begin = at;
    }
    kind = following;
    at += bytes;
  }
  if (begin < text.size()) encode_uncut(text.substr(begin), BpeUnits::kCharacters, scratch, ids);
}

void Bpe::encode_uncut(std::string_view word, BpeUnits units, Scratch& scratch, std::vector<std::int32_t>& ids) const {
  WordCache::Slot* slot = word.size() <= WordCache::kLongestWord ? scratch.cache.slot_of(word) : nullptr;
  if (slot != nullptr && WordCache::holds(*slot, word)) {
    ids.insert(ids.end(), slot->ids.begin(), slot->ids.begin() + slot->count);
    return;
  }
  const std::size_t before = ids.size();
  compute(word, units, scratch, ids);
  if (slot != nullptr) WordCache::fill(*slot, word, std::span(ids).subspan(before));
}

void Bpe::compute(std::string_view word, BpeUnits units, Scratch& scratch, std::vector<std::int32_t>& ids) const {
  if (const std::int32_t id = whole_word(word, units); id >= 0) {
    ids.push_back(id);
    return;
  }
  scratch.symbols.clear();
  if (units == BpeUnits::kBytes) {
    for (const char byte : word) scratch.symbols.push_back(bytes_[static_cast<unsigned char>(byte)]);
  } else {
    characters_to_symbols(word, scratch.symbols);
  }
  if (scratch.symbols.size() <= kFewSymbols) {
    merge(scratch);
  } else {
    merge_many(scratch);
  }
  ids.insert(ids.end(), scratch.symbols.begin(), scratch.symbols.end());
}

std::int32_t Bpe::whole_word(std::string_view word, BpeUnits units) const {
  if (!ignore_merges_) return -1;
  if (units == BpeUnits::kCharacters) return vocabulary_.find(word);
  const auto found = words_in_bytes_.find(std::string(word));
  return found == words_in_bytes_.end() ? -1 : found->second;
}

std::int32_t Bpe::id_of_character(std::string_view character) const {
  const auto first = static_cast<unsigned char>(character[0]);
  return first < 0x80 ? ascii_[first] : vocabulary_.find(character);
}

// An unknown token waits for the next character that is known, past bytes of others; and waiting ones fuse.
void Bpe::characters_to_symbols(std::string_view word, std::vector<std::int32_t>& symbols) const {
  bool waiting = false;
  for (std::size_t at = 0; at < word.size();) {
    const std::string_view character = word.substr(at, character_bytes(word, at));
    at += character.size();
    const std::int32_t id = id_of_character(character);
    const auto byte_id = [this](char byte) { return fallback_[static_cast<unsigned char>(byte)]; };
    if (id >= 0) {
      if (waiting) symbols.push_back(unknown_);
      waiting = false;
      symbols.push_back(id);
    } else if (std::ranges::all_of(character, [&](char byte) { return byte_id(byte) >= 0; })) {
      for (const char byte : character) symbols.push_back(byte_id(byte));
    } else if (unknown_ >= 0) {
      if (waiting && !fuse_unknown_) symbols.push_back(unknown_);
      waiting = true;
    }
  }
  if (waiting) symbols.push_back(unknown_);
}

// Again and again the leftmost pair of the lowest rank.
void Bpe::merge(Scratch& scratch) const {
  std::vector<std::int32_t>& symbols = scratch.symbols;
  std::vector<PairTable::Merge>& merges = scratch.merges;
  merges.clear();
  for (std::size_t i = 0; i + 1 < symbols.size(); ++i) merges.push_back(pairs_.find(symbols[i], symbols[i + 1]));
  while (!merges.empty()) {
    const auto best = std::ranges::min_element(merges, {}, &PairTable::Merge::rank);
    if (best->rank == PairTable::kNone) return;
    const auto at = static_cast<std::size_t>(best - merges.begin());
    symbols[at] = best->id;
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(at) + 1);
    merges.erase(best);
    if (at > 0) merges[at - 1] = pairs_.find(symbols[at - 1], symbols[at]);
    if (at < merges.size()) merges[at] = pairs_.find(symbols[at], symbols[at + 1]);
  }
}

// The same with a queue of (rank, position) and a linked list: n log n.
void Bpe::merge_many(Scratch& scratch) const {
  std::vector<std::int32_t>& symbols = scratch.symbols;
  const auto count = static_cast<std::int32_t>(symbols.size());
  const auto at = [](auto& values, std::int32_t i) -> auto& { return values[static_cast<std::size_t>(i)]; };
  scratch.next.resize(symbols.size());
  scratch.previous.resize(symbols.size());
  for (std::int32_t i = 0; i < count; ++i) {
    at(scratch.next, i) = i + 1;
    at(scratch.previous, i) = i - 1;
  }
  std::vector<std::uint64_t>& queue = scratch.queue;
  queue.clear();
  const auto merge_at = [&](std::int32_t left) {
    return pairs_.find(at(symbols, left), at(symbols, at(scratch.next, left)));
  };
  const auto push = [&](std::int32_t left) {
    const PairTable::Merge merge = merge_at(left);
    if (merge.rank == PairTable::kNone) return;
    queue.push_back(static_cast<std::uint64_t>(merge.rank) << 32 | static_cast<std::uint32_t>(left));
    std::ranges::push_heap(queue, std::greater());
  };
  for (std::int32_t i = 0; i + 1 < count; ++i) push(i);
  while (!queue.empty()) {
    std::ranges::pop_heap(queue, std::greater());
    const auto rank = static_cast<std::uint32_t>(queue.back() >> 32);
    const auto left = static_cast<std::int32_t>(queue.back() & 0xffffffffu);
    queue.pop_back();
    // What stood here may have merged since.
    if (at(symbols, left) < 0 || at(scratch.next, left) == count) continue;
    const PairTable::Merge merge = merge_at(left);
    if (merge.rank != rank) continue;
    const std::int32_t right = at(scratch.next, left);
    at(symbols, left) = merge.id;
    at(symbols, right) = -1;
    at(scratch.next, left) = at(scratch.next, right);
    if (at(scratch.next, left) < count) {
      at(scratch.previous, at(scratch.next, left)) = left;
      push(left);
    }
    if (at(scratch.previous, left) >= 0) push(at(scratch.previous, left));
  }
  std::erase(symbols, -1);
}

}  // namespace kvloom::huggingface
