// Packed linear layers on the CPU against what the machine can do: the rate at which its threads read memory, by as
// many streams as it takes, and the best rate of products that oneDNN or a packed layer reaches. Arguments: inputs,
// outputs, repetitions. Prints the best of the repetitions of everything.
#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels/cpu/packed_kernels.h"
#include "kernels/matmul.h"
#include "kernels/packed_linear.h"
#include "tests/bench/memory_rate.h"

namespace kvloom {
namespace {

struct Settings {
  std::int64_t inputs = 2048;
  std::int64_t outputs = 5632;
  int repetitions = 15;
};

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
  fmt::print("{} threads, [rows, {}] x [{}, {}], best of {} (of {} for up to 64 rows)\n", omp_get_max_threads(),
             settings.inputs, settings.inputs, settings.outputs, settings.repetitions, 4 * settings.repetitions);
  const double memory = memory_rate(settings.repetitions);
  fmt::print("reading memory: {:.1f} GB/s\n", memory / 1e9);
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
