#include <fmt/format.h>
#include <fmt/ranges.h>

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include "core/convert/plan_limits.h"
#include "core/convert/tensor_target.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

constexpr std::size_t kQueuedBytes = std::size_t{128} << 20;

std::uint64_t bytes_of(const Shape& shape, DType dtype) {
  return static_cast<std::uint64_t>(element_count(shape)) * size_of(dtype);
}

std::uint64_t total_bytes(std::span<const PlannedTensor> tensors) {
  std::uint64_t bytes = 0;
  for (const PlannedTensor& tensor : tensors) bytes += bytes_of(tensor.shape, tensor.dtype);
  return bytes;
}

// Writes blocks while the caller computes the next ones, of which at most kQueuedBytes wait. An error of writing comes
// with a later call.
class BackgroundWriter {
 public:
  explicit BackgroundWriter(TensorTarget& target) : target_(target), thread_([this] { write_all(); }) {}
  ~BackgroundWriter() {
    if (thread_.joinable()) close(Rest::kDrop);
  }

  void add(const PlannedTensor& tensor, const Rectangle& rows, std::vector<std::byte> bytes) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return fault_ || queued_ == 0 || queued_ + bytes.size() <= kQueuedBytes; });
    if (fault_) std::rethrow_exception(fault_);
    queued_ += bytes.size();
    queue_.push_back({&tensor, rows, std::move(bytes)});
    changed_.notify_all();
  }

  void finish() {
    close(Rest::kWrite);
    if (fault_) std::rethrow_exception(fault_);
  }

 private:
  enum class Rest : std::uint8_t { kWrite, kDrop };
  struct Block {
    const PlannedTensor* tensor;
    Rectangle rows;
    std::vector<std::byte> bytes;
  };

  void close(Rest rest) {
    {
      const std::scoped_lock lock(mutex_);
      if (rest == Rest::kDrop) queue_.clear();
      closed_ = true;
      changed_.notify_all();
    }
    thread_.join();
  }

  void write_all() {
    while (true) {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return closed_ || !queue_.empty(); });
      if (queue_.empty()) return;
      Block block = std::move(queue_.front());
      queue_.pop_front();
      const std::size_t bytes = block.bytes.size();
      lock.unlock();
      try {
        target_.add(*block.tensor, block.rows, std::move(block.bytes));
      } catch (...) {
        lock.lock();
        fault_ = std::current_exception();
        changed_.notify_all();
        return;
      }
      lock.lock();
      queued_ -= bytes;
      changed_.notify_all();
    }
  }

  TensorTarget& target_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Block> queue_;
  std::size_t queued_ = 0;  // bytes in the queue and being written
  bool closed_ = false;
  std::exception_ptr fault_;
  std::thread thread_;
};

}  // namespace

std::string describe_overflows(const std::map<std::string, Overflow>& overflows) {
  constexpr std::size_t kShown = 4;
  std::vector<std::string> shown;
  for (const auto& [name, overflow] : overflows) {
    if (shown.size() == kShown) break;
    shown.push_back(fmt::format("{}: {} values up to {:g}", name, overflow.values, overflow.largest));
  }
  const std::size_t more = overflows.size() - shown.size();
  return fmt::format("{}{}", fmt::join(shown, ", "), more == 0 ? "" : fmt::format(" and {} more tensors", more));
}

void run_conversion(PlannedConversion& conversion, TensorTarget& target, OverflowRule rule,
                    const std::function<void(const ConversionProgress&)>& progress) {
  conversion.check_left_over();
  conversion.forget_overflows();
  const std::span<const PlannedTensor> tensors = conversion.tensors();
  ConversionProgress done{0, total_bytes(tensors)};
  BackgroundWriter writer(target);
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    for (const Rectangle& wanted : target.wanted(tensors[i])) {
      for (const Rectangle& block : blocks_of(wanted, tensors[i].dtype, kBlockBytes)) {
        std::vector<std::byte> bytes(bytes_of(block.shape, tensors[i].dtype));
        conversion.compute(i, block, bytes);
        done.bytes += bytes.size();
        writer.add(tensors[i], block, std::move(bytes));
        if (progress) progress(done);
      }
    }
    // A tensor without elements is a tensor all the same.
    if (element_count(tensors[i].shape) == 0) {
      writer.add(tensors[i], {Shape(tensors[i].shape.size(), 0), tensors[i].shape}, {});
    }
  }
  writer.finish();
  if (rule == OverflowRule::kRefuse && !conversion.overflows().empty()) {
    reject_input("the conversion makes finite values infinite ({}); right is --dtype bf16 or f32, or --allow-overflow",
                 describe_overflows(conversion.overflows()));
  }
  target.finish();
}

}  // namespace kvloom
