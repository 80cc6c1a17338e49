// Packed linear layers on the CPU against what the machine can do: the rate at which its threads read memory, by as
// many streams as it takes, and the best rate of products that oneDNN or a packed layer reaches. Arguments: inputs,
// outputs, repetitions. Prints the best of the repetitions of everything.
#include <fmt/format.h>
#include <hwy/aligned_allocator.h>
#include <omp.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "kernels/cpu/packed_kernels.h"
#include "kernels/matmul.h"
#include "kernels/packed_linear.h"

namespace kvloom {
namespace {

struct Settings {
  std::int64_t inputs = 2048;
  std::int64_t outputs = 5632;
  int repetitions = 15;
};

// One thread is timed by the time that it ran: others may use the core between.
double now() {
  timespec time{};
  clock_gettime(omp_get_max_threads() == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

double seconds_of(const std::function<void()>& work) {
  const double start = now();
  work();
  return now() - start;
}

// Memory whose pages are large where the system lets them be.
class Pages {
 public:
  explicit Pages(std::size_t bytes) : bytes_(bytes), memory_(hwy::AllocateAligned<char>(bytes + kHuge)) {
    madvise(data(), bytes, MADV_HUGEPAGE);
    std::memset(data(), 1, bytes);
  }
  char* data() const {
    const auto address = reinterpret_cast<std::uintptr_t>(memory_.get());
    return memory_.get() + (kHuge - address % kHuge) % kHuge;
  }
  std::size_t size() const { return bytes_; }

 private:
  static constexpr std::size_t kHuge = std::size_t{1} << 21;
  std::size_t bytes_;
  hwy::AlignedFreeUniquePtr<char[]> memory_;
};

// Reads all of `pages`, each thread its part as so many streams. Returns something of what was read.
std::uint64_t read_streams(const Pages& pages, int streams) {
  std::uint64_t all = 0;
#pragma omp parallel reduction(+ : all)
  {
    const std::size_t words = pages.size() / 8;
    const std::size_t part = words / static_cast<std::size_t>(omp_get_num_threads());
    const auto* from =
        reinterpret_cast<const std::uint64_t*>(pages.data()) + part * static_cast<std::size_t>(omp_get_thread_num());
    const std::size_t length = part / static_cast<std::size_t>(streams) / 8 * 8;
    std::uint64_t sums[8] = {};
    for (std::size_t i = 0; i < length; i += 8) {
      for (int s = 0; s < streams; ++s) {
        const std::uint64_t* line = from + static_cast<std::size_t>(s) * length + i;
        for (int w = 0; w < 8; ++w) sums[w] += line[w];
      }
    }
    for (const std::uint64_t sum : sums) all += sum;
  }
  return all;
}

double memory_rate(int repetitions) {
  const Pages pages(std::size_t{256} << 20);

  double best = 0;
  std::uint64_t sum = 0;
  for (const int streams : {1, 2, 4, 8, 16}) {
    double seconds = 1e9;
    for (int n = 0; n < repetitions; ++n) {
      seconds = std::min(seconds, seconds_of([&] { sum += read_streams(pages, streams); }));
    }
    const double rate = static_cast<double>(pages.size()) / seconds;
    fmt::print("  {:2} streams a thread: {:5.1f} GB/s\n", streams, rate / 1e9);
    best = std::max(best, rate);
  }
  if (sum == 1) fmt::print(" ");
  return best;
}

template <typename T>
std::vector<T> noise(std::int64_t count) {
  std::minstd_rand engine(1);
  std::vector<T> values(static_cast<std::size_t>(count));
  for (T& value : values) value = T(static_cast<float>(engine() % 2048) / 2048.0f - 0.5f);
  return values;
}

template <typename T>
double onednn_rate(const Settings& settings, std::int64_t rows) {
  const auto a = noise<T>(rows * settings.inputs);
  const auto b = noise<T>(settings.outputs * settings.inputs);
  std::vector<T> c(static_cast<std::size_t>(rows * settings.outputs));
  const Matmul op{.a = a.data(),
                  .b = b.data(),
                  .c = c.data(),
                  .rows = rows,
                  .columns = settings.outputs,
                  .inner = settings.inputs,
                  .transpose_b = Transpose::kYes,
                  .operand_dtype = DTypeOf<T>::value,
                  .output_dtype = DTypeOf<T>::value};
  double best = 1e9;
  for (int n = 0; n < settings.repetitions; ++n) best = std::min(best, seconds_of([&] { cpu::run(op); }));
  return 2.0 * static_cast<double>(rows * settings.outputs * settings.inputs) / best;
}

struct Layer {
  Layer(const Settings& settings, WeightFormat format)
      : shape{settings.outputs, settings.inputs, format}, bytes(packed_bytes(shape)) {
    const auto weights = noise<float>(shape.outputs * shape.inputs);
    // As many copies as no cache holds.
    const std::size_t copies = (std::size_t{1} << 30) / bytes + 1;
    packed = std::make_unique<Pages>(copies * bytes);
    cpu::run(PackRows{shape, packed->data(), weights.data(), DType::kF32, 0, shape.outputs});
    for (std::size_t n = 1; n < copies; ++n) std::memcpy(packed->data() + n * bytes, packed->data(), bytes);
  }
  std::size_t copies() const { return packed->size() / bytes; }

  PackedShape shape;
  std::size_t bytes;
  std::unique_ptr<Pages> packed;
};

struct Ceilings {
  double memory;
  double products;
};

void measure(const Layer& layer, const cpu::PackedKernels& kernels, const Ceilings& ceilings, int repetitions) {
  const bool is_f32 = kernels.input_dtype == DType::kF32;
  fmt::print("  rows | ms       | GB/s of weights | of memory's | GFLOP/s | of products\n");
  std::size_t copy = 0;
  for (const std::int64_t rows : {1, 2, 4, 8, 12, 16, 32, 64, 128, 256, 512, 1024}) {
    const auto f32 = noise<float>(rows * layer.shape.inputs);
    const auto bf16 = noise<BFloat16>(rows * layer.shape.inputs);
    std::vector<float> output(static_cast<std::size_t>(rows * layer.shape.outputs));
    double best = 1e9;
    for (int n = 0; n < repetitions * (rows > 64 ? 1 : 4); ++n) {
      PackedPart part{.shape = layer.shape,
                      .packed = layer.packed->data() + (copy++ % layer.copies()) * layer.bytes,
                      .output = output.data(),
                      .output_dtype = kernels.input_dtype};
      const PackedLinear op{.input = is_f32 ? static_cast<const void*>(f32.data()) : bf16.data(),
                            .input_dtype = kernels.input_dtype,
                            .rows = rows,
                            .parts = {&part, 1}};
      best = std::min(best, seconds_of([&] { cpu::multiply_packed(op, kernels); }));
    }
    const double rate = static_cast<double>(layer.bytes) / best;
    const double flops = 2.0 * static_cast<double>(rows * layer.shape.outputs * layer.shape.inputs) / best;
    fmt::print("  {:4} | {:8.3f} | {:15.1f} | {:11.2f} | {:7.0f} | {:11.2f}\n", rows, best * 1e3, rate / 1e9,
               rate / ceilings.memory, flops / 1e9, flops / ceilings.products);
  }
}

void measure_all(const Settings& settings) {
  fmt::print("{} threads, [rows, {}] x [{}, {}], best of {} (of {} for up to 64 rows)\nreading memory:\n",
             omp_get_max_threads(), settings.inputs, settings.inputs, settings.outputs, settings.repetitions,
             4 * settings.repetitions);
  const double memory = memory_rate(settings.repetitions);
  double products_f32 = 0;
  double products_bf16 = 0;
  for (const std::int64_t rows : {256, 1024}) {
    products_f32 = std::max(products_f32, onednn_rate<float>(settings, rows));
    products_bf16 = std::max(products_bf16, onednn_rate<BFloat16>(settings, rows));
  }
  fmt::print("oneDNN's products: f32 {:.0f}, bf16 {:.0f} GFLOP/s\n", products_f32 / 1e9, products_bf16 / 1e9);
  for (const WeightFormat format : {WeightFormat::kF32, WeightFormat::kBF16, WeightFormat::kInt8}) {
    const Layer layer(settings, format);
    const char* names[] = {"f32", "bf16", "int8"};
    const char* name = names[static_cast<int>(format)];
    if (format != WeightFormat::kBF16) {
      const cpu::PackedKernels kernels = cpu::widening_kernels(DType::kF32);
      fmt::print("weights {}, input f32, {}\n", name, kernels.name);
      measure(layer, kernels, {memory, products_f32}, settings.repetitions);
    }
    if (format == WeightFormat::kF32) continue;
    for (const cpu::PackedKernels& kernels : cpu::bf16_kernels()) {
      fmt::print("weights {}, input bf16, {}\n", name, kernels.name);
      measure(layer, kernels, {memory, products_bf16}, settings.repetitions);
    }
  }
}

}  // namespace
}  // namespace kvloom

int main(int count, char** arguments) {
  kvloom::Settings settings;
  if (count > 1) settings.inputs = std::atoll(arguments[1]);
  if (count > 2) settings.outputs = std::atoll(arguments[2]);
  if (count > 3) settings.repetitions = std::atoi(arguments[3]);
  kvloom::measure_all(settings);
}
