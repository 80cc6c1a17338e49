// In which tensors two models differ, and by how much.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace kvloom {

// Of one tensor, whatever the dtypes.
struct TensorDifference {
  std::string name;
  std::string dtypes;
  double largest = 0;  // of |a - b|; infinite where only one is a number
  double scale = 0;    // largest |a|
  std::int64_t differing = 0;
  std::int64_t elements = 0;
};

struct ModelDifference {
  std::vector<TensorDifference> tensors;  // of one name and shape, the largest difference first
  std::vector<std::string> unmatched;     // what cannot be compared, a line each, with the reason
};

// Of checkpoints, output directories, Hugging Face folders or safetensors files. Throws InputError for anything else.
ModelDifference difference_of_models(const std::filesystem::path& one, const std::filesystem::path& other);

}  // namespace kvloom
