// Keys and values by source and pass, and the gradients that their readers send back (DESIGN 5).
#pragma once

#include <cstdint>
#include <map>
#include <utility>

#include "core/tensor.h"

namespace kvloom {

// One source's K (rotated) and V, [sequences, positions, kv_heads * head_dim] each.
struct KeyValue {
  Tensor key;
  Tensor value;
};

class KvStore {
 public:
  // Replaces what was there.
  void put(int source, int pass, KeyValue key_value);
  // Throws Error naming source and pass when nothing was put.
  const KeyValue& at(int source, int pass) const;
  bool contains(int source, int pass) const { return entries_.contains({source, pass}); }
  void drop(int source, int pass) { entries_.erase({source, pass}); }

 private:
  std::map<std::pair<int, int>, KeyValue> entries_;
};

// dK, dV of a source in a pass sum over its readers. Each reader adds once; the source takes the sum when all have.
class KvGradientStore {
 public:
  explicit KvGradientStore(Allocator& allocator) : allocator_(allocator) {}

  // The sums (f32, shape of K and V) that one more reader adds to; zero before the first. The reader adds at once.
  KeyValue& add_reader(int source, int pass, const Shape& shape);

  // Adds the sums of `readers` readers, made elsewhere.
  void add(int source, int pass, const KeyValue& sums, int readers);

  // The finished sums, removed from the store. Throws Error naming source, pass and both counts unless exactly
  // `expected_readers` have added; `expected_readers` is at least 1.
  KeyValue take(int source, int pass, int expected_readers);

  // Sums that no source has taken; 0 at the end of a right backward.
  std::size_t size() const { return entries_.size(); }

 private:
  struct Entry {
    KeyValue sums;
    int readers = 0;
  };
  Allocator& allocator_;
  std::map<std::pair<int, int>, Entry> entries_;
};

}  // namespace kvloom
