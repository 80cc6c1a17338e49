// Checkpoints of random tensors, cut at random and saved in one temporary folder, and what is wrong with them in words.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <string>
#include <utility>
#include <vector>

#include "core/checkpoint_folder.h"
#include "core/checkpoint_reader.h"
#include "core/checkpoint_writer.h"
#include "kernels/error.h"
#include "tests/support/random.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/thrown.h"

namespace kvloom::test {

inline constexpr std::array kDTypes = {DType::kF32, DType::kBF16, DType::kF16, DType::kF64, DType::kI32,
                                       DType::kI64, DType::kU8,   DType::kU16, DType::kU32};

struct WholeTensor {
  std::string name;
  Shape shape;
  DType dtype;
  std::vector<std::byte> bytes;
};

// The oracle: element by element, with no HDF5 and no rectangles but this one.
inline std::vector<std::byte> cut_out(const WholeTensor& tensor, const Rectangle& rectangle) {
  const std::size_t size = size_of(tensor.dtype);
  std::vector<std::byte> out;
  Shape index(tensor.shape.size(), 0);
  for (std::int64_t n = 0; n < element_count(rectangle.shape); ++n) {
    std::int64_t rest = n;
    std::int64_t position = 0;
    for (std::size_t axis = index.size(); axis-- > 0;) {
      index[axis] = rectangle.offset[axis] + rest % rectangle.shape[axis];
      rest /= rectangle.shape[axis];
    }
    for (std::size_t axis = 0; axis < index.size(); ++axis) position = position * tensor.shape[axis] + index[axis];
    const std::byte* element = tensor.bytes.data() + static_cast<std::size_t>(position) * size;
    out.insert(out.end(), element, element + size);
  }
  return out;
}

class CheckpointTest : public ::testing::Test {
 protected:
  std::int64_t draw(std::int64_t least, std::int64_t most) { return random_.integer(least, most); }

  WholeTensor random_tensor(const std::string& name, Shape shape, DType dtype) {
    std::vector<std::byte> bytes(static_cast<std::size_t>(element_count(shape)) * size_of(dtype));
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(draw(0, 255));
    return {name, std::move(shape), dtype, std::move(bytes)};
  }

  std::vector<WholeTensor> random_tensors(int count) {
    std::vector<WholeTensor> tensors;
    for (int i = 0; i < count; ++i) {
      Shape shape(static_cast<std::size_t>(draw(0, 3)));
      for (std::int64_t& size : shape) size = draw(1, 9);
      const std::string prefix = draw(0, 1) == 0 ? "model.layers." : "optimizer/momentum/model.layers.";
      tensors.push_back(random_tensor(prefix + std::to_string(i) + ".weight", std::move(shape),
                                      kDTypes[static_cast<std::size_t>(draw(0, kDTypes.size() - 1))]));
    }
    return tensors;
  }

  // Cuts [0, size) into at most `pieces` runs, some of them empty.
  std::vector<std::pair<std::int64_t, std::int64_t>> cut_axis(std::int64_t size, int pieces) {
    std::vector<std::int64_t> bounds = {0, size};
    for (int i = 1; i < pieces; ++i) bounds.push_back(draw(0, size));
    std::sort(bounds.begin(), bounds.end());
    std::vector<std::pair<std::int64_t, std::int64_t>> runs;
    for (std::size_t i = 0; i + 1 < bounds.size(); ++i) runs.emplace_back(bounds[i], bounds[i + 1]);
    return runs;
  }

  // One slice a part, cut along a random axis; parts may get none.
  void deal(const WholeTensor& tensor, std::vector<std::vector<std::pair<WholeTensor, Rectangle>>>& parts) {
    const Shape origin(tensor.shape.size(), 0);
    if (tensor.shape.empty()) {
      parts[static_cast<std::size_t>(draw(0, static_cast<int>(parts.size()) - 1))].push_back({tensor, {origin, {}}});
      return;
    }
    const auto axis = static_cast<std::size_t>(draw(0, static_cast<int>(tensor.shape.size()) - 1));
    const auto runs = cut_axis(tensor.shape[axis], static_cast<int>(parts.size()));
    for (std::size_t part = 0; part < parts.size(); ++part) {
      Rectangle rectangle{origin, tensor.shape};
      rectangle.offset[axis] = runs[part].first;
      rectangle.shape[axis] = runs[part].second - runs[part].first;
      parts[part].push_back({tensor, rectangle});
    }
  }

  void save(const std::filesystem::path& folder, const std::vector<WholeTensor>& tensors, int parts,
            std::uint64_t largest_shard = kLargestShard) {
    std::vector<std::vector<std::pair<WholeTensor, Rectangle>>> dealt(static_cast<std::size_t>(parts));
    for (const WholeTensor& tensor : tensors) deal(tensor, dealt);
    CheckpointWriter writer(folder);
    std::vector<proto::ManifestPart> written;
    for (int part = 0; part < parts; ++part) {
      std::vector<std::vector<std::byte>> memory;
      std::vector<TensorSlice> slices;
      for (const auto& [tensor, rectangle] : dealt[static_cast<std::size_t>(part)]) {
        memory.push_back(cut_out(tensor, rectangle));
        slices.push_back(
            {tensor.name, tensor.shape, tensor.dtype, rectangle.offset, rectangle.shape, memory.back().data()});
      }
      written.push_back(write_checkpoint_part(folder, part, slices, largest_shard));
    }
    writer.commit(some_manifest(), written);
  }

  static proto::Manifest some_manifest() {
    proto::Manifest manifest;
    manifest.mutable_model()->set_layers(2);
    manifest.mutable_training()->set_step(7);
    manifest.set_tokenizer(std::string("\0\xff raw", 6));
    return manifest;
  }

  void expect_equal(const std::filesystem::path& folder, const std::vector<WholeTensor>& tensors) {
    CheckpointReader reader(folder);
    ASSERT_EQ(reader.manifest().tensors_size(), static_cast<int>(tensors.size()));
    for (const WholeTensor& tensor : tensors) {
      std::vector<std::byte> read(tensor.bytes.size());
      reader.read(tensor.name, tensor.dtype, read.data());
      EXPECT_EQ(read, tensor.bytes) << tensor.name << " " << to_string(tensor.shape);
    }
  }

  std::filesystem::path step(std::uint64_t number) const { return folder_.path() / checkpoint_name(number); }

  void flip_bit(const std::filesystem::path& file, std::size_t byte, int bit) {
    std::string bytes = read_bytes(file);
    bytes.at(byte) = static_cast<char>(bytes.at(byte) ^ (1 << bit));
    overwrite(file, bytes);
  }
  static void overwrite(const std::filesystem::path& file, std::string_view bytes) {
    std::ofstream(file, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }
  static std::vector<std::filesystem::path> files_in(const std::filesystem::path& folder) {
    std::vector<std::filesystem::path> files;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) files.push_back(entry.path());
    std::sort(files.begin(), files.end());
    return files;
  }
  std::vector<std::string> names_beside() const {
    std::vector<std::string> names;
    for (const std::filesystem::path& path : files_in(folder_.path())) names.push_back(path.filename().string());
    return names;
  }

  test::Random random_;
  TemporaryFolder folder_;
};

}  // namespace kvloom::test
