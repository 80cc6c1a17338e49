// Where a conversion's tensors go. A target is whole under its name or not there: it is written beside, synced, then
// renamed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/convert/plan.h"
#include "core/file.h"
#include "core/rectangle.h"
#include "proto/manifest.pb.h"

namespace kvloom {

class TensorTarget {
 public:
  virtual ~TensorTarget() = default;

  // The rectangles of `tensor` that it wants, in this order; together they are the tensor.
  virtual std::vector<Rectangle> wanted(const PlannedTensor& tensor) const = 0;
  // One rectangle, or the next rows of one. Tensors come in the order in which they were declared.
  virtual void add(const PlannedTensor& tensor, const Rectangle& rows, std::vector<std::byte> bytes) = 0;
  // Everything is on the disk under the target's name when this returns.
  virtual void finish() = 0;
};

// Tensor bytes that a safetensors file holds, unless one tensor has more.
inline constexpr std::uint64_t kLargestSafetensors = 5'000'000'000;

// A folder of safetensors, with an index where there are several, and `files`. Throws InputError when `folder` exists
// and is not empty.
std::unique_ptr<TensorTarget> make_safetensors_target(const std::filesystem::path& folder,
                                                      std::span<const PlannedTensor> tensors,
                                                      std::vector<NamedFile> files,
                                                      std::uint64_t largest_file = kLargestSafetensors);

// How a tensor is cut for the ranks that will read it: for each, its part (a number of the shard files' names) and
// rectangle.
struct RankSlice {
  int part;
  Rectangle rectangle;
};
using TensorCut = std::function<std::vector<RankSlice>(const PlannedTensor&)>;

// A checkpoint; `manifest` brings all but its files and tensors. Without `cut` every tensor is one slice, or several of
// whole rows. Throws InputError when `folder` exists and is not empty.
std::unique_ptr<TensorTarget> make_checkpoint_target(const std::filesystem::path& folder, proto::Manifest manifest,
                                                     TensorCut cut = {});

// Done so far, of how much; called between blocks.
struct ConversionProgress {
  std::uint64_t bytes;
  std::uint64_t of_bytes;
};

enum class OverflowRule : std::uint8_t { kRefuse, kAllow };

// Computes every tensor into the target, a block at a time; writes one block while it computes the next. Throws
// InputError, naming the tensors, where the cast to the target's dtype made finite values infinite, unless that is
// allowed; then conversion.overflows() says so. The target does not appear then.
void run_conversion(PlannedConversion& conversion, TensorTarget& target, OverflowRule rule = OverflowRule::kRefuse,
                    const std::function<void(const ConversionProgress&)>& progress = {});

// "model.norm.weight: 3 values up to 70000", of the first few tensors.
std::string describe_overflows(const std::map<std::string, Overflow>& overflows);

}  // namespace kvloom
