#include <deque>
#include <future>
#include <map>
#include <utility>

#include "core/checkpoint_folder.h"
#include "core/checkpoint_writer.h"
#include "core/convert/target_folder.h"
#include "core/convert/tensor_target.h"

namespace kvloom {
namespace {

// Tensor bytes that wait for their shard file, over all parts. Those of a file that is being written are held besides,
// and its image takes as much again, twice.
constexpr std::size_t kWaitingBytes = std::size_t{48} << 20;

// One is made while another one is on its way to the disk.
constexpr std::size_t kMostBeingWritten = 2;

class CheckpointTarget final : public TensorTarget {
 public:
  CheckpointTarget(const std::filesystem::path& folder, proto::Manifest manifest, TensorCut cut)
      : manifest_(std::move(manifest)), cut_(std::move(cut)), lock_(without_trailing_slash(folder)), writer_(folder) {}

  std::vector<Rectangle> wanted(const PlannedTensor& tensor) const override {
    std::vector<Rectangle> rectangles;
    for (const RankSlice& slice : cut(tensor)) rectangles.push_back(slice.rectangle);
    return rectangles;
  }

  void add(const PlannedTensor& tensor, const Rectangle& rows, std::vector<std::byte> bytes) override {
    waiting_bytes_ += bytes.size();
    waiting_[part_of(tensor, rows)].push_back({tensor, rows, std::move(bytes)});
    if (waiting_bytes_ >= kWaitingBytes) write_waiting();
  }

  void finish() override {
    write_waiting();
    while (!being_written_.empty()) finish_oldest();
    writer_.commit(std::move(manifest_), parts_);
  }

 private:
  struct Waiting {
    PlannedTensor tensor;
    Rectangle rows;
    std::vector<std::byte> bytes;
  };

  std::vector<RankSlice> cut(const PlannedTensor& tensor) const {
    if (cut_) return cut_(tensor);
    return {{0, {Shape(tensor.shape.size(), 0), tensor.shape}}};
  }

  int part_of(const PlannedTensor& tensor, const Rectangle& rows) const {
    for (const RankSlice& slice : cut(tensor)) {
      if (element_count(rows.shape) == 0 || intersection(slice.rectangle, rows)) return slice.part;
    }
    return 0;
  }

  // Shard files are named by a running number: a rank's slices may come in several turns.
  void write_waiting() {
    for (auto& [part, all] : waiting_) {
      if (being_written_.size() == kMostBeingWritten) finish_oldest();
      being_written_.push_back(std::async(std::launch::async, [this, number = begun_++, slices = std::move(all)] {
        return writer_.write_part(number, slices_of(slices));
      }));
    }
    waiting_.clear();
    waiting_bytes_ = 0;
  }

  void finish_oldest() {
    std::future<proto::ManifestPart> oldest = std::move(being_written_.front());
    being_written_.pop_front();
    parts_.push_back(oldest.get());
  }

  static std::vector<TensorSlice> slices_of(const std::vector<Waiting>& all) {
    std::vector<TensorSlice> slices;
    for (const Waiting& one : all) {
      slices.push_back({.name = one.tensor.name,
                        .global_shape = one.tensor.shape,
                        .dtype = one.tensor.dtype,
                        .offset = one.rows.offset,
                        .shape = one.rows.shape,
                        .data = one.bytes.data()});
    }
    return slices;
  }

  proto::Manifest manifest_;
  TensorCut cut_;
  TargetFolderLock lock_;
  CheckpointWriter writer_;
  std::vector<proto::ManifestPart> parts_;
  std::map<int, std::vector<Waiting>> waiting_;  // by part
  std::size_t waiting_bytes_ = 0;
  int begun_ = 0;
  std::deque<std::future<proto::ManifestPart>> being_written_;  // goes before what they use
};

}  // namespace

std::unique_ptr<TensorTarget> make_checkpoint_target(const std::filesystem::path& folder, proto::Manifest manifest,
                                                     TensorCut cut) {
  return std::make_unique<CheckpointTarget>(folder, std::move(manifest), std::move(cut));
}

}  // namespace kvloom
