#include "core/kv_store.h"

#include "core/ops.h"

namespace kvloom {

void KvStore::put(int source, int pass, KeyValue key_value) {
  entries_.insert_or_assign({source, pass}, std::move(key_value));
}

const KeyValue& KvStore::at(int source, int pass) const {
  const auto found = entries_.find({source, pass});
  if (found == entries_.end())
    fail("kv store: K/V of layer {} in pass {} were read before they were written", source, pass);
  return found->second;
}

KeyValue& KvGradientStore::add_reader(int source, int pass, const Shape& shape) {
  Entry& entry = entries_[{source, pass}];
  if (entry.readers == 0) {
    entry.sums = {Tensor::zeros(allocator_, shape, DType::kF32), Tensor::zeros(allocator_, shape, DType::kF32)};
  }
  ++entry.readers;
  return entry.sums;
}

void KvGradientStore::add(int source, int pass, const KeyValue& sums, int readers) {
  Entry& entry = entries_[{source, pass}];
  if (entry.readers == 0) {
    entry.sums = sums;
  } else {
    ops::add(entry.sums.key, sums.key, entry.sums.key);
    ops::add(entry.sums.value, sums.value, entry.sums.value);
  }
  entry.readers += readers;
}

KeyValue KvGradientStore::take(int source, int pass, int expected_readers) {
  const auto found = entries_.find({source, pass});
  const int readers = found == entries_.end() ? 0 : found->second.readers;
  if (readers != expected_readers) {
    fail("kv gradient: layer {} in pass {} has {} readers' gradients, {} expected", source, pass, readers,
         expected_readers);
  }
  KeyValue sums = std::move(found->second.sums);
  entries_.erase(found);
  return sums;
}

}  // namespace kvloom
