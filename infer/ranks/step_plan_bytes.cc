#include "infer/ranks/step_plan_bytes.h"

#include <utility>

#include "core/checksum.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

constexpr std::uint32_t kFormat = 0x314c504bu;  // "KPL1"

// Little-endian on every machine.
class Writer {
 public:
  template <typename T>
  void operator()(const T& value) {
    auto bits = static_cast<std::uint64_t>(value);
    for (std::size_t byte = 0; byte < sizeof(T); ++byte, bits >>= 8) bytes.push_back(static_cast<std::byte>(bits));
  }
  template <typename T, typename Item>
  void list(const std::vector<T>& items, Item&& item) {
    (*this)(static_cast<std::uint32_t>(items.size()));
    for (const T& each : items) item(*this, each);
  }

  std::vector<std::byte> bytes;
};

class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  template <typename T>
  void operator()(T& value) {
    if (bytes_.size() < sizeof(T)) fail("step plan: the bytes end within a number of {}", sizeof(T));
    std::uint64_t bits = 0;
    for (std::size_t byte = sizeof(T); byte-- > 0;) bits = bits << 8 | std::to_integer<std::uint64_t>(bytes_[byte]);
    value = static_cast<T>(bits);
    bytes_ = bytes_.subspan(sizeof(T));
  }
  template <typename T, typename Item>
  void list(std::vector<T>& items, Item&& item) {
    std::uint32_t count = 0;
    (*this)(count);
    // Every item has a byte at the least, so a broken count asks for no more memory than the bytes that came.
    if (count > bytes_.size()) fail("step plan: a list of {} items in {} bytes", count, bytes_.size());
    items.resize(count);
    for (T& each : items) item(*this, each);
  }
  bool at_end() const { return bytes_.empty(); }

 private:
  std::span<const std::byte> bytes_;
};

// The one list of what a plan's bytes are, in order; `Plan` is const for a Writer.
template <typename Stream, typename Plan>
void transfer(Stream& stream, Plan& plan) {
  const auto swap = [](Stream& to, auto& item) { to(item.group), to(item.page), to(item.place); };
  stream(plan.step);
  stream(plan.finished);
  stream.list(plan.swap_out, swap);
  stream.list(plan.swap_in, swap);
  stream.list(plan.copies, [](Stream& to, auto& item) { to(item.group), to(item.from), to(item.to); });
  stream.list(plan.pages, [](Stream& to, auto& item) { to(item.slot), to(item.group), to(item.index), to(item.page); });
  stream.list(plan.rows.runs, [](Stream& to, auto& run) {
    to(run.slot), to(run.kind), to(run.layers.first), to(run.layers.end), to(run.first_position), to(run.rows);
    to(run.block_first), to(run.wanted_from), to(run.entering), to(run.forced);
  });
  stream.list(plan.rows.tokens, [](Stream& to, auto& token) { to(token); });
}

void check(const StepPlan& plan) {
  std::int64_t tokens = 0;
  for (const RowRun& run : plan.rows.runs) {
    if (run.kind > RowKind::kWavefront || run.slot < 0 || run.rows <= 0 || run.first_position < 0) {
      fail("step plan: a run of slot {} with {} rows from {} is none", run.slot, run.rows, run.first_position);
    }
    if (run.layers.first == 0) tokens += run.rows;
  }
  if (tokens != std::ssize(plan.rows.tokens)) {
    fail("step plan: {} tokens for {} rows that begin at layer 0", plan.rows.tokens.size(), tokens);
  }
}

}  // namespace

std::vector<std::byte> to_bytes(const StepPlan& plan) {
  Writer writer;
  writer(kFormat);
  transfer(writer, plan);
  return std::move(writer.bytes);
}

StepPlan parse_step_plan(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  std::uint32_t format = 0;
  reader(format);
  if (format != kFormat) fail("step plan: bytes begin with {:#x}; right is {:#x}", format, kFormat);
  StepPlan plan;
  transfer(reader, plan);
  if (!reader.at_end()) fail("step plan: bytes go on behind step {}", plan.step);
  check(plan);
  return plan;
}

std::uint64_t digest(const StepPlan& plan) { return checksum(to_bytes(plan)); }

}  // namespace kvloom
