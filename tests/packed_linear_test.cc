// Packed linear layers on the CPU: against double precision, and a row's bits whatever stands beside it.
#include "kernels/packed_linear.h"

#include <gtest/gtest.h>
#include <hwy/aligned_allocator.h>
#include <omp.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

#include "kernels/cpu/packed_kernels.h"
#include "tests/support/random.h"

namespace kvloom {
namespace {

using test::Random;

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

// Elements of f32 or bf16.
class Buffer {
 public:
  Buffer(DType dtype, std::int64_t count) : dtype_(dtype), bytes_(at(count) * size_of(dtype)) {}

  DType dtype() const { return dtype_; }
  void* data() { return bytes_.data(); }
  const void* data() const { return bytes_.data(); }
  char* element(std::int64_t i) { return bytes_.data() + at(i) * size_of(dtype_); }
  std::int64_t size() const { return static_cast<std::int64_t>(bytes_.size() / size_of(dtype_)); }
  const std::vector<char>& bytes() const { return bytes_; }

  float get(std::int64_t i) const {
    const char* from = bytes_.data() + at(i) * size_of(dtype_);
    if (dtype_ == DType::kF32) return *reinterpret_cast<const float*>(from);
    return static_cast<float>(*reinterpret_cast<const BFloat16*>(from));
  }
  void set(std::int64_t i, float value) {
    if (dtype_ == DType::kF32) {
      *reinterpret_cast<float*>(element(i)) = value;
    } else {
      *reinterpret_cast<BFloat16*>(element(i)) = BFloat16(value);
    }
  }
  void randomise(Random& random, double scale = 1) {
    for (std::int64_t i = 0; i < size(); ++i) set(i, static_cast<float>(scale * random.normal()));
  }

 private:
  DType dtype_;
  std::vector<char> bytes_;
};

// A matrix, packed in calls of random size, and the values that it then stands for.
struct Matrix {
  Matrix(const PackedShape& given, Random& random)
      : Matrix(given, random, random.flip() ? DType::kF32 : DType::kBF16) {}
  Matrix(const PackedShape& given, Random& random, DType weights_dtype)
      : shape(given),
        packed(hwy::AllocateAligned<char>(packed_bytes(given))),
        weights(weights_dtype, given.outputs * given.inputs) {
    std::memset(packed.get(), 0x5a, packed_bytes(given));
    weights.randomise(random, 0.3);
    const std::int64_t zeros = random.integer(0, shape.outputs - 1);
    for (std::int64_t k = 0; k < shape.inputs; ++k) weights.set(zeros * shape.inputs + k, 0.0f);
    std::vector<PackRows> calls;
    for (std::int64_t first = 0; first < shape.outputs;) {
      const std::int64_t count = random.flip() ? random.integer(1, 40) : shape.outputs;
      const std::int64_t outputs = std::min(shape.outputs - first, count);
      calls.push_back({shape, packed.get(), weights.element(first * shape.inputs), weights.dtype(), first, outputs});
      first += outputs;
    }
    std::shuffle(calls.begin(), calls.end(), random.engine());
    for (const PackRows& call : calls) cpu::run(call);
    for (std::int64_t o = 0; o < shape.outputs; ++o) append_row(o);
  }

  // What row o of the packed matrix stands for: scale times levels.
  void append_row(std::int64_t o) {
    float most = 0;
    for (std::int64_t k = 0; k < shape.inputs; ++k) most = std::max(most, std::fabs(weights.get(o * shape.inputs + k)));
    const float scale = shape.format == WeightFormat::kInt8 ? most / 127.0f : 1.0f;
    scales.push_back(scale);
    for (std::int64_t k = 0; k < shape.inputs; ++k) {
      const float weight = weights.get(o * shape.inputs + k);
      switch (shape.format) {
        case WeightFormat::kF32:
          values.push_back(weight);
          break;
        case WeightFormat::kBF16:
          values.push_back(static_cast<float>(BFloat16(weight)));
          break;
        case WeightFormat::kInt8:
          values.push_back(scale == 0 ? 0.0f : std::nearbyint(weight / scale));
          break;
      }
    }
  }
  double value(std::int64_t o, std::int64_t k) const { return values[at(o * shape.inputs + k)]; }

  PackedShape shape;
  hwy::AlignedFreeUniquePtr<char[]> packed;
  Buffer weights;
  std::vector<float> values;  // levels, where there are scales
  std::vector<float> scales;
};

DType input_of(WeightFormat format, Random& random) {
  if (format == WeightFormat::kF32) return DType::kF32;
  if (format == WeightFormat::kBF16) return DType::kBF16;
  return random.flip() ? DType::kF32 : DType::kBF16;
}

// One part of a call with everything that it needs.
struct Part {
  Part(const PackedShape& shape, std::int64_t rows, Random& random)
      : matrix(shape, random),
        stride(random.flip() ? 0 : shape.outputs + random.integer(0, 5)),
        output(random.flip() ? DType::kF32 : DType::kBF16, rows * width()),
        addend(output.dtype(), rows * width()),
        bias(random.normals(at(shape.outputs))),
        has_bias(random.flip()),
        has_addend(random.flip()),
        in_place(random.flip()) {
    for (std::int64_t i = 0; i < output.size(); ++i) output.set(i, std::numeric_limits<float>::quiet_NaN());
    addend.randomise(random);
    if (has_addend && in_place) output = addend;
  }

  std::int64_t width() const { return stride == 0 ? matrix.shape.outputs : stride; }

  // Of rows from `row` on.
  PackedPart op(std::int64_t row, Buffer& to) {
    PackedPart part{.shape = matrix.shape,
                    .packed = matrix.packed.get(),
                    .output = to.element(row * width()),
                    .output_dtype = to.dtype(),
                    .output_stride = stride};
    if (has_bias) part.bias = bias.data();
    if (has_addend) part.addend = in_place ? to.element(row * width()) : addend.element(row * width());
    return part;
  }

  Matrix matrix;
  std::int64_t stride;
  Buffer output;
  Buffer addend;
  std::vector<float> bias;
  bool has_bias;
  bool has_addend;
  bool in_place;
};

struct Problem {
  struct Ask {
    std::int64_t rows;
    std::int64_t inputs;
    std::int64_t outputs;
  };

  Problem(const Ask& ask, WeightFormat format, Random& random)
      : rows(ask.rows),
        input_stride(random.flip() ? 0 : ask.inputs + random.integer(0, 5)),
        input(input_of(format, random), rows * (input_stride == 0 ? ask.inputs : input_stride)) {
    input.randomise(random);
    parts.push_back(std::make_unique<Part>(PackedShape{ask.outputs, ask.inputs, format}, rows, random));
    for (std::int64_t more = random.integer(0, 2); more > 0; --more) {
      parts.push_back(std::make_unique<Part>(PackedShape{random.integer(1, 80), ask.inputs, format}, rows, random));
    }
  }

  std::int64_t row_width() const { return input_stride == 0 ? parts[0]->matrix.shape.inputs : input_stride; }

  // Rows [first, first + count) by themselves, into `outputs`.
  void run(const cpu::PackedKernels& kernels, std::int64_t first, std::int64_t count, std::vector<Buffer>& outputs) {
    std::vector<PackedPart> ops;
    for (std::size_t n = 0; n < parts.size(); ++n) ops.push_back(parts[n]->op(first, outputs[n]));
    cpu::multiply_packed({.input = input.element(first * row_width()),
                          .input_dtype = input.dtype(),
                          .rows = count,
                          .input_stride = input_stride,
                          .parts = ops},
                         kernels);
  }
  std::vector<Buffer> outputs() const {
    std::vector<Buffer> all;
    for (const auto& part : parts) all.push_back(part->output);
    return all;
  }

  std::int64_t rows;
  std::int64_t input_stride;
  Buffer input;
  std::vector<std::unique_ptr<Part>> parts;
};

std::vector<cpu::PackedKernels> kernels_for(DType input) {
  if (input == DType::kF32) return {cpu::widening_kernels(DType::kF32)};
  const auto all = cpu::bf16_kernels();
  return {all.begin(), all.end()};
}

void expect_close(const Problem& problem, const Part& part, const Buffer& output, const Buffer& before) {
  const PackedShape& shape = part.matrix.shape;
  for (std::int64_t row = 0; row < problem.rows; ++row) {
    for (std::int64_t o = 0; o < shape.outputs; ++o) {
      double sum = 0;
      double size = 0;
      for (std::int64_t k = 0; k < shape.inputs; ++k) {
        const double product = problem.input.get(row * problem.row_width() + k) * part.matrix.value(o, k);
        sum += product;
        size += std::fabs(product);
      }
      const double scale = part.matrix.scales[at(o)];
      double want = sum * scale;
      if (part.has_bias) want += part.bias[at(o)];
      if (part.has_addend)
        want += part.in_place ? before.get(row * part.width() + o) : part.addend.get(row * part.width() + o);
      double bound = 2e-6 * size * scale + 1e-6 * (1 + std::fabs(want));
      if (output.dtype() == DType::kBF16) bound += std::fabs(want) / 250;
      ASSERT_NEAR(output.get(row * part.width() + o), want, bound)
          << problem.rows << " rows, [" << shape.outputs << ", " << shape.inputs << "], format "
          << static_cast<int>(shape.format) << ", row " << row << " output " << o;
    }
    for (std::int64_t o = shape.outputs; o < part.width(); ++o) {
      const std::int64_t i = row * part.width() + o;
      ASSERT_TRUE(std::isnan(output.get(i)) || output.get(i) == before.get(i)) << "wrote between rows";
    }
  }
}

// Inputs and outputs that are a multiple of nothing, and such that are.
std::vector<Problem::Ask> asks(Random& random) {
  std::vector<Problem::Ask> all;
  for (const std::int64_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 15, 16, 17, 31, 32, 33, 47, 64, 65, 100, 257, 300}) {
    all.push_back({rows, random.integer(1, 200), random.integer(1, rows > 64 ? 150 : 300)});
    if (rows <= 64) all.push_back({rows, 32 * random.integer(1, 12), 16 * random.integer(1, 20)});
  }
  all.push_back({random.integer(1, 4), random.integer(2000, 3000), random.integer(400, 600)});
  return all;
}

constexpr WeightFormat kFormats[] = {WeightFormat::kF32, WeightFormat::kBF16, WeightFormat::kInt8};

TEST(PackedLinear, AgreesWithDoublePrecision) {
  Random random;
  for (const WeightFormat format : kFormats) {
    for (const Problem::Ask& ask : asks(random)) {
      Problem problem(ask, format, random);
      for (const cpu::PackedKernels& kernels : kernels_for(problem.input.dtype())) {
        SCOPED_TRACE(kernels.name);
        std::vector<Buffer> outputs = problem.outputs();
        problem.run(kernels, 0, problem.rows, outputs);
        for (std::size_t n = 0; n < outputs.size(); ++n) {
          ASSERT_NO_FATAL_FAILURE(expect_close(problem, *problem.parts[n], outputs[n], problem.parts[n]->output));
        }
      }
    }
  }
}

TEST(PackedLinear, ARowHasItsBitsAloneAndInAnyCompanyAndByAnyThreads) {
  Random random;
  for (const WeightFormat format : kFormats) {
    for (const Problem::Ask& ask : asks(random)) {
      Problem problem(ask, format, random);
      for (const cpu::PackedKernels& kernels : kernels_for(problem.input.dtype())) {
        omp_set_num_threads(2);
        std::vector<Buffer> whole = problem.outputs();
        problem.run(kernels, 0, problem.rows, whole);
        omp_set_num_threads(1);
        std::vector<Buffer> cut = problem.outputs();
        for (std::int64_t row = 0; row < problem.rows;) {
          const std::int64_t count = std::min(problem.rows - row, random.integer(1, 1 + problem.rows / 2));
          problem.run(kernels, row, count, cut);
          row += count;
        }
        omp_set_num_threads(2);
        std::vector<Buffer> alone = problem.outputs();
        for (std::int64_t row = 0; row < problem.rows; ++row) problem.run(kernels, row, 1, alone);
        for (std::size_t n = 0; n < whole.size(); ++n) {
          ASSERT_EQ(cut[n].bytes(), whole[n].bytes()) << kernels.name << ", rows " << ask.rows << ", in pieces";
          ASSERT_EQ(alone[n].bytes(), whole[n].bytes()) << kernels.name << ", rows " << ask.rows << ", one by one";
        }
      }
    }
  }
}

TEST(PackedLinear, ARowDoesNotSeeItsNeighbours) {
  Random random;
  for (const WeightFormat format : kFormats) {
    for (const std::int64_t rows : {2, 5, 16, 20, 70}) {
      Problem problem({rows, random.integer(30, 150), random.integer(30, 150)}, format, random);
      for (const cpu::PackedKernels& kernels : kernels_for(problem.input.dtype())) {
        std::vector<Buffer> before = problem.outputs();
        problem.run(kernels, 0, rows, before);
        Problem other(std::move(problem));
        const Buffer input = other.input;
        const std::int64_t kept = random.integer(0, rows - 1);
        for (std::int64_t i = 0; i < input.size(); ++i) {
          if (i / other.row_width() != kept) other.input.set(i, std::numeric_limits<float>::quiet_NaN());
        }
        std::vector<Buffer> after = other.outputs();
        other.run(kernels, 0, rows, after);
        for (std::size_t n = 0; n < after.size(); ++n) {
          const Part& part = *other.parts[n];
          for (std::int64_t o = 0; o < part.matrix.shape.outputs; ++o) {
            ASSERT_EQ(after[n].get(kept * part.width() + o), before[n].get(kept * part.width() + o)) << kernels.name;
          }
        }
        other.input = input;
        problem = std::move(other);
      }
    }
  }
}

TEST(PackedLinear, HasTheBitsOfRowsThatThreadsShare) {
  Random random;
  for (const WeightFormat format : kFormats) {
    for (const std::int64_t rows : {1, 3, 40}) {
      Problem problem({rows, 700, 900}, format, random);
      for (const cpu::PackedKernels& kernels : kernels_for(problem.input.dtype())) {
        std::vector<std::vector<Buffer>> results;
        for (const int threads : {1, 2, 3}) {
          omp_set_num_threads(threads);
          results.push_back(problem.outputs());
          problem.run(kernels, 0, rows, results.back());
        }
        for (std::size_t n = 0; n < problem.parts.size(); ++n) {
          ASSERT_EQ(results[1][n].bytes(), results[0][n].bytes()) << kernels.name;
          ASSERT_EQ(results[2][n].bytes(), results[0][n].bytes()) << kernels.name;
        }
      }
    }
  }
  omp_set_num_threads(2);
}

TEST(UnpackRows, GivesBackWhatWasPacked) {
  Random random;
  for (const WeightFormat format : kFormats) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      const Matrix matrix({random.integer(1, 90), random.integer(1, 150), format}, random);
      const auto inputs = matrix.shape.inputs;
      std::vector<std::int32_t> indices;
      for (int n = 0; n < 50; ++n) {
        indices.push_back(static_cast<std::int32_t>(random.integer(-2, matrix.shape.outputs + 1)));
      }
      Buffer output(dtype, std::ssize(indices) * inputs);
      cpu::run(
          UnpackRows{matrix.shape, matrix.packed.get(), indices.data(), std::ssize(indices), output.data(), dtype});
      for (std::int64_t row = 0; row < std::ssize(indices); ++row) {
        const std::int64_t o = indices[at(row)];
        for (std::int64_t k = 0; k < inputs; ++k) {
          float want = 0;
          if (o >= 0 && o < matrix.shape.outputs) {
            want = static_cast<float>(matrix.value(o, k)) * matrix.scales[at(o)];
          }
          if (dtype == DType::kBF16) want = static_cast<float>(BFloat16(want));
          ASSERT_EQ(output.get(row * inputs + k), want);
        }
      }
    }
  }
}

TEST(PackRows, ABufferIsWholeWithoutWhatItHeldBefore) {
  Random random;
  for (const WeightFormat format : kFormats) {
    const Matrix matrix({random.integer(1, 90), random.integer(1, 150), format}, random, DType::kF32);
    const std::size_t size = packed_bytes(matrix.shape);
    const auto again = hwy::AllocateAligned<char>(size);
    std::memset(again.get(), 0xff, size);
    cpu::run(PackRows{matrix.shape, again.get(), matrix.weights.data(), DType::kF32, 0, matrix.shape.outputs});
    EXPECT_EQ(std::memcmp(again.get(), matrix.packed.get(), size), 0);
  }
}

TEST(PackedLinear, RefusesWhatDoesNotGoTogether) {
  Random random;
  Problem problem({3, 40, 20}, WeightFormat::kF32, random);
  std::vector<PackedPart> parts = {problem.parts[0]->op(0, problem.parts[0]->output)};
  const PackedLinear op{.input = problem.input.data(), .input_dtype = DType::kBF16, .rows = 3, .parts = parts};
  EXPECT_THROW(cpu::run(op), Error);
  parts.push_back(parts[0]);
  parts[1].shape.inputs = 41;
  PackedLinear apart = op;
  apart.input_dtype = DType::kF32;
  apart.parts = parts;
  EXPECT_THROW(cpu::run(apart), Error);
  EXPECT_THROW(cpu::run(PackRows{parts[0].shape, nullptr, nullptr, DType::kF32, 10, 11}), Error);
}

}  // namespace
}  // namespace kvloom
