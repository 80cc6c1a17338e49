// Keys and values by source and pass, and the gradients that their readers send back (DESIGN 5).
#pragma once

#include <compare>
#include <cstdint>
#include <map>

#include "core/kv_map.h"
#include "core/tensor.h"

namespace kvloom {

// K (rotated) and V, [sequences, positions, kv_heads * head_dim] each; a part that nothing asked for is undefined.
using KeyValue = ByPart<Tensor>;

// A source's K, or V, of a pass.
struct KvName {
  KvPart part;
  int source;
  int pass;

  friend auto operator<=>(const KvName&, const KvName&) = default;
};

class KvStore {
 public:
  // Replaces what was there.
  void put(const KvName& name, Tensor values);
  // Throws Error with the name when nothing was put.
  const Tensor& at(const KvName& name) const;
  bool contains(const KvName& name) const { return entries_.contains(name); }
  void drop(const KvName& name) { entries_.erase(name); }

 private:
  std::map<KvName, Tensor> entries_;
};

// dK, or dV, of a source in a pass sums over its readers. Each reader adds once; the source takes the sum when all
// have.
class KvGradientStore {
 public:
  explicit KvGradientStore(Allocator& allocator) : allocator_(allocator) {}

  // The sum (f32, shape of K and V) that one more reader adds to; zero before the first. The reader adds at once.
  Tensor add_reader(const KvName& name, const Shape& shape);

  // Adds the sum of `readers` readers, made elsewhere.
  void add(const KvName& name, const Tensor& sum, int readers);

  // The finished sum, removed from the store. Throws Error with the name and both counts unless exactly
  // `expected_readers` have added; `expected_readers` is at least 1.
  Tensor take(const KvName& name, int expected_readers);

  // Sums that no source has taken; 0 at the end of a right backward.
  std::size_t size() const { return entries_.size(); }

 private:
  struct Entry {
    Tensor sum;
    int readers = 0;
  };
  Allocator& allocator_;
  std::map<KvName, Entry> entries_;
};

}  // namespace kvloom
