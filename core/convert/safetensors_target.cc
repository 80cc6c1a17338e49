#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "core/convert/target_folder.h"
#include "core/convert/tensor_target.h"
#include "core/file.h"
#include "core/safetensors.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

// One file of the folder.
struct Share {
  std::vector<SafetensorsTensor> tensors;
  std::uint64_t bytes = 0;
};

std::uint64_t bytes_of(const PlannedTensor& tensor) {
  return static_cast<std::uint64_t>(element_count(tensor.shape)) * size_of(tensor.dtype);
}

std::vector<Share> share_out(std::span<const PlannedTensor> tensors, std::uint64_t largest) {
  std::vector<Share> shares(1);
  for (const PlannedTensor& tensor : tensors) {
    const std::uint64_t bytes = bytes_of(tensor);
    if (!shares.back().tensors.empty() && shares.back().bytes + bytes > largest) shares.emplace_back();
    shares.back().tensors.push_back({tensor.name, tensor.shape, tensor.dtype});
    shares.back().bytes += bytes;
  }
  return shares;
}

class SafetensorsTarget final : public TensorTarget {
 public:
  SafetensorsTarget(const std::filesystem::path& folder, std::vector<Share> shares, std::vector<NamedFile> files)
      : folder_(folder), shares_(std::move(shares)), files_(std::move(files)) {
    open();
  }

  std::vector<Rectangle> wanted(const PlannedTensor& tensor) const override {
    return {{Shape(tensor.shape.size(), 0), tensor.shape}};
  }

  void add(const PlannedTensor& tensor, const Rectangle&, std::vector<std::byte> bytes) override {
    if (added_ == shares_[next_].tensors.size()) next_file();
    writer_->append(tensor.name, bytes);
    left_ -= bytes.size();
    if (left_ > 0) return;
    ++added_;
    if (added_ < shares_[next_].tensors.size()) left_ = wanted_bytes();
  }

  void finish() override {
    writer_->finish();
    if (shares_.size() > 1) write(kIndexName, index());
    for (const NamedFile& file : files_) write(file.name, file.content);
    folder_.commit();
  }

 private:
  static constexpr const char* kIndexName = "model.safetensors.index.json";

  void open() {
    added_ = 0;
    left_ = shares_[next_].tensors.empty() ? 0 : wanted_bytes();
    writer_.emplace(folder_.partial() / name_of_file(next_), shares_[next_].tensors);
  }

  void next_file() {
    writer_->finish();
    writer_.reset();
    if (++next_ == shares_.size()) fail("conversion: a tensor that was not declared");
    open();
  }

  std::uint64_t wanted_bytes() const {
    const SafetensorsTensor& tensor = shares_[next_].tensors[added_];
    return static_cast<std::uint64_t>(element_count(tensor.shape)) * size_of(tensor.dtype);
  }

  std::string name_of_file(std::size_t index) const {
    if (shares_.size() == 1) return std::string(kSafetensorsSingle);
    return fmt::format("model-{:05}-of-{:05}.safetensors", index + 1, shares_.size());
  }

  std::string index() const {
    std::uint64_t bytes = 0;
    nlohmann::json map = nlohmann::json::object();
    for (std::size_t i = 0; i < shares_.size(); ++i) {
      bytes += shares_[i].bytes;
      for (const SafetensorsTensor& tensor : shares_[i].tensors) map[tensor.name] = name_of_file(i);
    }
    return nlohmann::json{{"metadata", {{"total_size", bytes}}}, {"weight_map", std::move(map)}}.dump(2) + "\n";
  }

  void write(const std::string& name, const std::string& content) {
    write_file_durably(folder_.partial() / name, std::as_bytes(std::span(content)));
  }

  TargetFolder folder_;
  std::vector<Share> shares_;
  std::vector<NamedFile> files_;
  std::optional<SafetensorsWriter> writer_;
  std::size_t next_ = 0;    // file being written
  std::size_t added_ = 0;   // of its tensors
  std::uint64_t left_ = 0;  // bytes of the tensor being written
};

}  // namespace

std::unique_ptr<TensorTarget> make_safetensors_target(const std::filesystem::path& folder,
                                                      std::span<const PlannedTensor> tensors,
                                                      std::vector<NamedFile> files, std::uint64_t largest_file) {
  return std::make_unique<SafetensorsTarget>(folder, share_out(tensors, largest_file), std::move(files));
}

}  // namespace kvloom
