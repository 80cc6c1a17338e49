// Where a conversion's tensors come from: safetensors as Hugging Face lays them out, or a checkpoint of ours.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/rectangle.h"
#include "core/tensor.h"
#include "kernels/dtype.h"

namespace kvloom {

struct SourceTensor {
  std::string name;
  Shape shape;
  std::string stored_dtype;    // as the source writes it: "F8_E4M3", "bf16"
  std::optional<DType> dtype;  // nothing where kvloom has no such dtype
};

// One thread at a time.
class TensorSource {
 public:
  virtual ~TensorSource() = default;

  // The file or folder, for messages.
  const std::string& where() const { return where_; }
  // In the order in which they lie in the files: reading in this order is sequential.
  std::span<const SourceTensor> tensors() const { return tensors_; }
  // What its files say and is passed over, in words for warnings.
  const std::vector<std::string>& unheeded() const { return unheeded_; }
  // Null when there is none.
  const SourceTensor* find(const std::string& name) const;
  // Its place in tensors(). Throws InputError when there is none.
  std::size_t position(const std::string& name) const;

  // out = the rectangle, row-major in the stored dtype. Throws InputError for a dtype that kvloom lacks, a rectangle
  // outside of the tensor, damaged content.
  void read(const SourceTensor& tensor, const Rectangle& wanted, std::span<std::byte> out);

 protected:
  TensorSource(std::string where, std::vector<SourceTensor> tensors, std::vector<std::string> unheeded = {});

 private:
  // `wanted` lies inside of the tensor, which has a dtype; `out` has its size.
  virtual void read_checked(const SourceTensor& tensor, const Rectangle& wanted, std::byte* out) = 0;

  std::string where_;
  std::vector<SourceTensor> tensors_;
  std::vector<std::string> unheeded_;
  std::unordered_map<std::string, std::size_t> index_;
};

inline constexpr std::string_view kSafetensorsIndex = "model.safetensors.index.json";
inline constexpr std::string_view kSafetensorsSingle = "model.safetensors";

// A folder with model.safetensors, or else with model.safetensors.index.json and the files that it names, or with one
// other safetensors file that is no adapter's; or such a file itself. What is in the files counts, whatever the index
// says of it. Files are mapped, and what was read does not stay in memory. Throws InputError, naming file and tensor,
// for damaged files and a tensor that is in two of them; where there are none it says what the folder holds instead.
std::unique_ptr<TensorSource> open_safetensors(const std::filesystem::path& path);

// A checkpoint folder, optimizer state included.
std::unique_ptr<TensorSource> open_checkpoint(const std::filesystem::path& folder);

// The names of the safetensors files that open_safetensors reads, as they stand in the folder.
std::vector<std::string> safetensors_files(const std::filesystem::path& folder);

// [first, end) of a row-major buffer moves to or from a rectangle of a larger one: to[at + .] = from, both of elements
// of `element` bytes. `from` is dense with the rectangle's shape.
void place_rectangle(const std::byte* from, const Rectangle& at, const Shape& shape, std::size_t element,
                     std::byte* to);
// to = from[wanted], `from` of `shape`.
void take_rectangle(const std::byte* from, const Shape& shape, const Rectangle& wanted, std::size_t element,
                    std::byte* to);

}  // namespace kvloom
