#include "core/kv_store.h"

#include <utility>

#include "core/ops.h"

namespace kvloom {

void KvStore::put(const KvName& name, Tensor values) { entries_.insert_or_assign(name, std::move(values)); }

const Tensor& KvStore::at(const KvName& name) const {
  const auto found = entries_.find(name);
  if (found == entries_.end()) {
    fail("kv store: {} of layer {} in pass {} was read before it was written", name_of(name.part), name.source,
         name.pass);
  }
  return found->second;
}

Tensor KvGradientStore::add_reader(const KvName& name, const Shape& shape) {
  Entry& entry = entries_[name];
  if (entry.readers == 0) entry.sum = Tensor::zeros(allocator_, shape, DType::kF32);
  ++entry.readers;
  return entry.sum;
}

void KvGradientStore::add(const KvName& name, const Tensor& sum, int readers) {
  Entry& entry = entries_[name];
  if (entry.readers == 0) {
    entry.sum = sum;
  } else {
    ops::add(entry.sum, sum, entry.sum);
  }
  entry.readers += readers;
}

Tensor KvGradientStore::take(const KvName& name, int expected_readers) {
  const auto found = entries_.find(name);
  const int readers = found == entries_.end() ? 0 : found->second.readers;
  if (readers != expected_readers) {
    fail("kv gradient: {} of layer {} in pass {} has {} readers' gradients, {} expected", name_of(name.part),
         name.source, name.pass, readers, expected_readers);
  }
  Tensor sum = std::move(found->second.sum);
  entries_.erase(found);
  return sum;
}

}  // namespace kvloom
