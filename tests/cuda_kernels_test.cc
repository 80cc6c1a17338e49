// Every operation but attention on a GPU against the same on the CPU, which its own tests hold against doubles. Run
// with the kernels compiled for the host as well (simt_cuda_kernels_test).
#include "kernels/adamw.h"
#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/matmul.h"
#include "kernels/reduce.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"
#include "tests/support/gpu.h"
#include "tests/support/kernel_rows.h"
#include "tests/support/random_pages.h"
#include "tests/support/reference_matmul.h"

namespace kvloom {
namespace {

using test::Mirror;
using test::Random;
using test::Rows;

// Both sides round: they may be one unit in the last place apart, 2^-7 of a bf16.
template <typename T>
constexpr double kApart = std::is_same_v<T, BFloat16> ? 0x1.02p-7 : 2e-5;

template <typename T>
void expect_same(const Mirror& mirror, const std::vector<T>& host, const std::string& what, double terms = 0) {
  // Gaps hold NaN on both sides.
  test::Doubles device;
  test::Doubles expected;
  const std::vector<T> now = mirror.now(host);
  for (std::size_t i = 0; i < host.size(); ++i) {
    const double value = test::to_double(host[i]);
    ASSERT_EQ(std::isnan(value), std::isnan(test::to_double(now[i]))) << what << " element " << i;
    if (std::isnan(value)) continue;
    expected.push_back(value);
    device.push_back(test::to_double(now[i]));
  }
  test::expect_close(device, expected, kApart<T>, what, terms);
}

struct Size {
  std::int64_t rows;
  std::int64_t columns;
  std::int64_t gap;  // between rows
};

// Single elements, packs that a warp shares, packs that a block shares, and rows beyond what threads keep.
std::vector<Size> sizes(Random& random) {
  return {{random.integer(1, 9), random.integer(1, 70), random.integer(0, 5)},
          {random.integer(1, 40), 64, 8},
          {random.integer(1, 5), 8 * random.integer(130, 200), 0},
          {3, 8 * random.integer(1030, 1100), 16},
          {2, 1 + 2 * random.integer(600, 700), 1},
          {0, 16, 0}};
}

template <typename T>
class CudaKernels : public test::GpuTest {};
TYPED_TEST_SUITE(CudaKernels, test::ComputeTypes);

TYPED_TEST(CudaKernels, RmsNormForwardIsTheCpus) {
  Random random;
  for (const Size& size : sizes(random)) {
    Rows<TypeParam> input(size.rows, size.columns, size.columns + size.gap);
    Rows<TypeParam> output(size.rows, size.columns, size.columns + 2 * size.gap);
    input.randomise(random, random.real(0.1, 4));
    const auto gain = random.normals(static_cast<std::size_t>(size.columns));
    std::vector<float> inverse_rms(static_cast<std::size_t>(size.rows));
    const Mirror mirror(this->allocator(), input.data, output.data, gain, inverse_rms);
    RmsNormForward op{.input = input.data.data(),
                      .gain = gain.data(),
                      .output = output.data.data(),
                      .inverse_rms = inverse_rms.data(),
                      .rows = size.rows,
                      .columns = size.columns,
                      .epsilon = 1e-5f,
                      .dtype = DTypeOf<TypeParam>::value,
                      .input_stride = input.stride,
                      .output_stride = output.stride};
    if (size.rows == 0) op.input = op.output = nullptr;
    cpu::run(op);
    if (size.rows > 0) {
      op.input = mirror(op.input);
      op.gain = mirror(op.gain);
      op.output = mirror(op.output);
      op.inverse_rms = mirror(op.inverse_rms);
    }
    cuda::run(op, this->queue());
    expect_same(mirror, output.data, "output");
    expect_same(mirror, inverse_rms, "inverse_rms");
  }
}

TYPED_TEST(CudaKernels, RmsNormOfASumWithAResidualIsTheCpus) {
  Random random;
  for (const Size& size : sizes(random)) {
    if (size.rows == 0) continue;
    for (const bool in_place : {false, true}) {
      Rows<TypeParam> input(size.rows, size.columns, size.columns + size.gap);
      Rows<TypeParam> addend(size.rows, size.columns);
      Rows<TypeParam> sum(size.rows, size.columns);
      Rows<TypeParam> output(size.rows, size.columns);
      input.randomise(random, random.real(0.1, 4));
      addend.randomise(random);
      const auto gain = random.normals(static_cast<std::size_t>(size.columns));
      std::vector<float> inverse_rms(static_cast<std::size_t>(size.rows));
      const Mirror mirror(this->allocator(), input.data, addend.data, sum.data, output.data, gain, inverse_rms);
      const auto op = [&](const auto& at) {
        return RmsNormForward{.input = at(input.data.data()),
                              .gain = at(gain.data()),
                              .output = at(output.data.data()),
                              .inverse_rms = at(inverse_rms.data()),
                              .rows = size.rows,
                              .columns = size.columns,
                              .epsilon = 1e-5f,
                              .dtype = DTypeOf<TypeParam>::value,
                              .input_stride = input.stride,
                              .addend = at(addend.data.data()),
                              .sum = at((in_place ? addend : sum).data.data())};
      };
      cuda::run(op(mirror), this->queue());
      cpu::run(op([](auto* host) { return host; }));
      const auto& written = in_place ? addend.data : sum.data;
      EXPECT_TRUE(test::equal_bits(mirror.now(written), written));
      expect_same(mirror, output.data, "output");
      expect_same(mirror, inverse_rms, "inverse_rms");
    }
  }
}

TYPED_TEST(CudaKernels, RmsNormBackwardIsTheCpusAndHasEqualBitsEveryTime) {
  Random random;
  auto all = sizes(random);
  all.push_back({random.integer(540, 560), 8 * 140, 0});
  all.push_back({random.integer(2200, 2300), 8, 0});
  all.push_back({2, 12288, 0});  // 48 KiB for a block's sums
  for (const Size& size : all) {
    if (size.rows == 0) continue;
    for (const bool accumulate : {false, true}) {
      Rows<TypeParam> input(size.rows, size.columns, size.columns + size.gap);
      Rows<TypeParam> grad_output(size.rows, size.columns);
      Rows<TypeParam> grad_input(size.rows, size.columns, size.columns + 2 * size.gap);
      input.randomise(random);
      grad_output.randomise(random);
      grad_input.randomise(random);
      const auto gain = random.normals(static_cast<std::size_t>(size.columns));
      auto grad_gain = random.normals(static_cast<std::size_t>(size.columns));
      std::vector<float> inverse_rms(static_cast<std::size_t>(size.rows));
      for (float& scale : inverse_rms) scale = static_cast<float>(random.real(0.5, 2));
      const Mirror mirror(this->allocator(), input.data, grad_output.data, grad_input.data, gain, grad_gain,
                          inverse_rms);
      const Mirror again(this->allocator(), input.data, grad_output.data, grad_input.data, gain, grad_gain,
                         inverse_rms);
      const RmsNormBackward op{.input = input.data.data(),
                               .gain = gain.data(),
                               .inverse_rms = inverse_rms.data(),
                               .grad_output = grad_output.data.data(),
                               .grad_input = grad_input.data.data(),
                               .grad_gain = grad_gain.data(),
                               .rows = size.rows,
                               .columns = size.columns,
                               .accumulate_input = accumulate,
                               .dtype = DTypeOf<TypeParam>::value,
                               .input_stride = input.stride,
                               .grad_input_stride = grad_input.stride};
      for (const Mirror* there : {&mirror, &again}) {
        RmsNormBackward on = op;
        on.input = (*there)(op.input);
        on.gain = (*there)(op.gain);
        on.inverse_rms = (*there)(op.inverse_rms);
        on.grad_output = (*there)(op.grad_output);
        on.grad_input = (*there)(op.grad_input);
        on.grad_gain = (*there)(op.grad_gain);
        cuda::run(on, this->queue());
      }
      cpu::run(op);
      expect_same(mirror, grad_input.data, "grad_input", 1);
      expect_same(mirror, grad_gain, "grad_gain", std::sqrt(static_cast<double>(size.rows)));
      EXPECT_TRUE(test::equal_bits(mirror.now(grad_gain), again.now(grad_gain)));
    }
  }
}

constexpr std::int64_t kFurthestStart = 30;

// Of sequences of which some stand nowhere: `beyond` positions before 0.
std::vector<std::int32_t> random_starts(Random& random, std::int64_t sequences, std::int64_t beyond) {
  std::vector<std::int32_t> starts(static_cast<std::size_t>(sequences));
  for (std::int32_t& start : starts) {
    start = static_cast<std::int32_t>(random.integer(0, 3) == 0 ? -beyond : random.integer(0, kFurthestStart));
  }
  return starts;
}

TYPED_TEST(CudaKernels, RopeIsTheCpusBothWays) {
  Random random;
  for (const std::int64_t head_dim :
       {std::int64_t{2}, 2 * random.integer(2, 40), std::int64_t{64}, std::int64_t{128}}) {
    for (const Rotation rotation : {Rotation::kForward, Rotation::kBackward}) {
      const std::int64_t heads = random.integer(1, 5);
      const std::int64_t period = random.integer(1, 6);
      const std::int64_t first = random.integer(0, 9);
      const std::int64_t rows = period * random.integer(1, 3);
      const std::int64_t gap = head_dim == 64 ? 8 * random.integer(0, 2) : random.integer(0, 3);
      Rows<TypeParam> data(rows, heads * head_dim, heads * head_dim + gap);
      data.randomise(random);
      const std::vector<std::int32_t> starts = random_starts(random, rows / period, first + period);
      std::vector<float> cosine(test::area(first + kFurthestStart + period, head_dim / 2));
      std::vector<float> sine(cosine.size());
      for (std::size_t i = 0; i < cosine.size(); ++i) {
        const double angle = random.real(-3, 3);
        cosine[i] = static_cast<float>(std::cos(angle));
        sine[i] = static_cast<float>(std::sin(angle));
      }
      const Mirror mirror(this->allocator(), data.data, cosine, sine, starts);
      Rope op{.data = data.data.data(),
              .cosine = cosine.data(),
              .sine = sine.data(),
              .rows = rows,
              .heads = heads,
              .head_dim = head_dim,
              .stride = data.stride,
              .first_position = first,
              .row_period = period,
              .rotation = rotation,
              .dtype = DTypeOf<TypeParam>::value,
              .starts = random.flip() ? starts.data() : nullptr};
      cpu::run(op);
      op.data = mirror(op.data);
      op.cosine = mirror(op.cosine);
      op.sine = mirror(op.sine);
      op.starts = mirror(op.starts);
      cuda::run(op, this->queue());
      expect_same(mirror, data.data, "data", 1);
    }
  }
}

TYPED_TEST(CudaKernels, RopeSplitIntoCachesAndPagesIsTheCpus) {
  Random random;
  for (const std::int64_t head_dim :
       {std::int64_t{2}, 2 * random.integer(2, 40), std::int64_t{64}, std::int64_t{128}}) {
    const std::int64_t heads = random.integer(1, 5);
    const std::int64_t kv_heads = random.integer(1, 3);
    const std::int64_t period = random.integer(1, 4);
    const std::int64_t first = random.integer(0, 9);
    const std::int64_t sequences = random.integer(1, 3);
    const std::int64_t capacity = first + kFurthestStart + period + random.integer(0, 3);
    const std::vector<std::int32_t> starts = random_starts(random, sequences, first + period);
    const bool has_starts = random.flip();
    const RowPlace place = random.flip() ? RowPlace::kAtPage : RowPlace::kAtPosition;
    test::RandomPages pages(random, sequences, capacity, 16);
    for (std::int64_t r = 0; r < sequences * period; ++r) {
      const std::int64_t start = has_starts ? starts[static_cast<std::size_t>(r / period)] : 0;
      if (first + start + r % period >= 0) pages.row(r / period, first + start + r % period);
    }
    Rows<TypeParam> joint(sequences * period, (heads + 2 * kv_heads) * head_dim);
    Rows<TypeParam> query(joint.rows, heads * head_dim);
    Rows<TypeParam> key(std::max(pages.rows(), sequences * capacity), kv_heads * head_dim);
    Rows<TypeParam> value = key;
    joint.randomise(random);
    std::vector<float> cosine(test::area(first + kFurthestStart + period, head_dim / 2));
    std::vector<float> sine(cosine.size());
    for (std::size_t i = 0; i < cosine.size(); ++i) {
      const double angle = random.real(-3, 3);
      cosine[i] = static_cast<float>(std::cos(angle));
      sine[i] = static_cast<float>(std::sin(angle));
    }
    const Mirror mirror(this->allocator(), joint.data, query.data, key.data, value.data, cosine, sine, starts,
                        pages.entries());
    const auto op = [&](const auto& at) {
      const auto part = [&](std::int64_t column, Rows<TypeParam>& output, RowPlace to, HeadTurn turn) {
        return RopePart{at(joint.data.data() + column),
                        at(output.data.data()),
                        output.columns / head_dim,
                        joint.stride,
                        output.stride,
                        capacity * output.stride,
                        to,
                        turn};
      };
      return RopeSplit{
          {part(0, query, RowPlace::kDense, HeadTurn::kRotated), part(query.columns, key, place, HeadTurn::kRotated),
           part(query.columns + key.columns, value, place, HeadTurn::kAsIs)},
          at(cosine.data()),
          at(sine.data()),
          joint.rows,
          head_dim,
          first,
          period,
          DTypeOf<TypeParam>::value,
          has_starts ? at(starts.data()) : nullptr,
          pages.table(at(pages.entries().data()))};
    };
    cuda::run(op(mirror), this->queue());
    cpu::run(op([](auto* host) { return host; }));
    expect_same(mirror, query.data, "query", 1);
    expect_same(mirror, key.data, "key", 1);
    EXPECT_TRUE(test::equal_bits(mirror.now(value.data), value.data));
  }
}

TYPED_TEST(CudaKernels, SwigluIsTheCpusForwardAndBackward) {
  Random random;
  for (const Size& size : sizes(random)) {
    if (size.rows == 0) continue;
    Rows<TypeParam> gate_up(size.rows, 2 * size.columns);
    Rows<TypeParam> output(size.rows, size.columns);
    Rows<TypeParam> grad(size.rows, 2 * size.columns);
    gate_up.randomise(random, 2);
    Rows<TypeParam> grad_output = output;
    grad_output.randomise(random);
    const Mirror mirror(this->allocator(), gate_up.data, output.data, grad.data, grad_output.data);
    constexpr DType kDType = DTypeOf<TypeParam>::value;
    cpu::run(SwigluForward{gate_up.data.data(), output.data.data(), size.rows, size.columns, kDType});
    cpu::run(SwigluBackward{gate_up.data.data(), grad_output.data.data(), grad.data.data(), size.rows, size.columns,
                            kDType});
    cuda::run(SwigluForward{mirror(gate_up.data.data()), mirror(output.data.data()), size.rows, size.columns, kDType},
              this->queue());
    cuda::run(SwigluBackward{mirror(gate_up.data.data()), mirror(grad_output.data.data()), mirror(grad.data.data()),
                             size.rows, size.columns, kDType},
              this->queue());
    expect_same(mirror, output.data, "output", 1);
    expect_same(mirror, grad.data, "gradient", 1);
  }
}

TYPED_TEST(CudaKernels, AddAndBiasAreTheCpus) {
  Random random;
  constexpr DType kDType = DTypeOf<TypeParam>::value;
  for (const Size& size : sizes(random)) {
    if (size.rows == 0) continue;
    Rows<TypeParam> data(size.rows, size.columns, size.columns + size.gap);
    data.randomise(random);
    Rows<TypeParam> a = data;
    Rows<TypeParam> b = data;
    b.randomise(random);
    const auto bias = random.normals(static_cast<std::size_t>(size.columns));
    auto grad_bias = bias;
    const Mirror mirror(this->allocator(), data.data, a.data, b.data, bias, grad_bias);
    const auto count = static_cast<std::int64_t>(a.data.size());
    cpu::run(Add{a.data.data(), b.data.data(), b.data.data(), count, kDType});
    cuda::run(Add{mirror(a.data.data()), mirror(b.data.data()), mirror(b.data.data()), count, kDType}, this->queue());
    expect_same(mirror, b.data, "sum");
    cpu::run(BiasBackward{a.data.data(), grad_bias.data(), size.rows, size.columns, a.stride, kDType});
    cuda::run(BiasBackward{mirror(a.data.data()), mirror(grad_bias.data()), size.rows, size.columns, a.stride, kDType},
              this->queue());
    expect_same(mirror, grad_bias, "grad_bias", 1);
    cpu::run(BiasForward{data.data.data(), bias.data(), size.rows, size.columns, data.stride, kDType});
    cuda::run(BiasForward{mirror(data.data.data()), mirror(bias.data()), size.rows, size.columns, data.stride, kDType},
              this->queue());
    expect_same(mirror, data.data, "biased");
  }
}

TYPED_TEST(CudaKernels, BiasGradientOfManyRowsIsTheCpus) {
  Random random;
  Rows<TypeParam> grad(random.integer(1200, 1300), 37);
  grad.randomise(random);
  std::vector<float> sums(37, 1.0f);
  const Mirror mirror(this->allocator(), grad.data, sums);
  constexpr DType kDType = DTypeOf<TypeParam>::value;
  cpu::run(BiasBackward{grad.data.data(), sums.data(), grad.rows, 37, 37, kDType});
  cuda::run(BiasBackward{mirror(grad.data.data()), mirror(sums.data()), grad.rows, 37, 37, kDType}, this->queue());
  expect_same(mirror, sums, "sums", std::sqrt(static_cast<double>(grad.rows)));
}

TYPED_TEST(CudaKernels, EmbeddingIsTheCpusAndItsGradientHasTheCpusBits) {
  Random random;
  constexpr DType kDType = DTypeOf<TypeParam>::value;
  for (const std::int64_t columns : {random.integer(1, 30), std::int64_t{64}, 8 * random.integer(280, 300)}) {
    const std::int64_t rows = columns == 64 ? random.integer(300, 600) : random.integer(1, 20);
    const std::int64_t table_rows = random.integer(3, 12);
    const std::int64_t first = random.integer(0, 5);
    // Some beyond the shard on either side, one much more often than the others.
    auto tokens = random.tokens(static_cast<std::size_t>(rows), table_rows + first + 3);
    for (std::int32_t& token : tokens) token = random.integer(0, 3) == 0 ? static_cast<std::int32_t>(first) : token;
    Rows<TypeParam> table(table_rows, columns);
    Rows<TypeParam> output(rows, columns);
    Rows<TypeParam> grad_output(rows, columns);
    Rows<float> grad_table(table_rows, columns);
    table.randomise(random);
    grad_output.randomise(random);
    grad_table.randomise(random);
    const Mirror mirror(this->allocator(), tokens, table.data, output.data, grad_output.data, grad_table.data);
    cpu::run(EmbeddingForward{tokens.data(), table.data.data(), output.data.data(), rows, columns, table_rows, first,
                              kDType});
    cuda::run(EmbeddingForward{mirror(tokens.data()), mirror(table.data.data()), mirror(output.data.data()), rows,
                               columns, table_rows, first, kDType},
              this->queue());
    EXPECT_TRUE(test::equal_bits(mirror.now(output.data), output.data));
    cpu::run(EmbeddingBackward{tokens.data(), grad_output.data.data(), grad_table.data.data(), rows, columns,
                               table_rows, first, kDType});
    cuda::run(EmbeddingBackward{mirror(tokens.data()), mirror(grad_output.data.data()), mirror(grad_table.data.data()),
                                rows, columns, table_rows, first, kDType},
              this->queue());
    EXPECT_TRUE(test::equal_bits(mirror.now(grad_table.data), grad_table.data));
  }
}

template <typename Op>
void move_inputs(const Mirror& mirror, Op& op) {
  op.logits = mirror(op.logits);
  op.targets = mirror(op.targets);
  op.maximum = mirror(op.maximum);
  op.total = mirror(op.total);
  op.target_logit = mirror(op.target_logit);
}

TYPED_TEST(CudaKernels, CrossEntropyOfAShardIsTheCpus) {
  Random random;
  for (const std::int64_t vocab : {random.integer(1, 90), 8 * random.integer(10, 20), 8 * random.integer(300, 400)}) {
    const std::int64_t rows = random.integer(1, 7);
    const std::int64_t first = random.integer(0, 20);
    Rows<float> logits(rows, vocab);
    logits.randomise(random, random.real(0.1, 4));
    auto targets = random.tokens(static_cast<std::size_t>(rows), vocab + first + 5);
    targets[0] = kIgnoredTarget;
    std::vector<float> maximum(targets.size());
    auto total = maximum;
    auto target_logit = maximum;
    auto loss = maximum;
    auto wider = maximum;
    for (float& value : wider) value = static_cast<float>(random.real(5, 9));
    Rows<TypeParam> grad(rows, vocab);
    const Mirror mirror(this->allocator(), logits.data, targets, maximum, total, target_logit, loss, wider, grad.data);
    CrossEntropyStatistics statistics{logits.data.data(),  targets.data(), maximum.data(), total.data(),
                                      target_logit.data(), rows,           vocab,          first};
    CrossEntropy op{.logits = logits.data.data(),
                    .targets = targets.data(),
                    .maximum = wider.data(),
                    .total = total.data(),
                    .target_logit = target_logit.data(),
                    .loss = loss.data(),
                    .grad_logits = grad.data.data(),
                    .rows = rows,
                    .vocab = vocab,
                    .first_token = first,
                    .grad_scale = 0.3f,
                    .grad_dtype = DTypeOf<TypeParam>::value};
    cpu::run(statistics);
    cpu::run(RescaleTotals{total.data(), maximum.data(), wider.data(), rows});
    cpu::run(op);
    move_inputs(mirror, statistics);
    cuda::run(statistics, this->queue());
    const RescaleTotals rescale{mirror(total.data()), mirror(maximum.data()), mirror(wider.data()), rows};
    cuda::run(rescale, this->queue());
    move_inputs(mirror, op);
    op.loss = mirror(op.loss);
    op.grad_logits = mirror(op.grad_logits);
    cuda::run(op, this->queue());
    expect_same(mirror, maximum, "maximum");
    expect_same(mirror, total, "total");
    expect_same(mirror, target_logit, "target_logit");
    expect_same(mirror, loss, "loss", 1);
    expect_same(mirror, grad.data, "gradient", 0.3);
    EXPECT_EQ(mirror.now(loss)[0], 0);
    op.grad_logits = nullptr;
    cuda::run(op, this->queue());
    expect_same(mirror, loss, "loss alone", 1);
  }
}

TYPED_TEST(CudaKernels, MaxChangeIsTheCpusAndShowsNotANumber) {
  Random random;
  constexpr DType kDType = DTypeOf<TypeParam>::value;
  for (const std::int64_t count : {std::int64_t{1}, random.integer(2, 300), random.integer(9000, 20000)}) {
    Rows<TypeParam> a(1, count);
    Rows<TypeParam> b(1, count);
    a.randomise(random);
    b.randomise(random);
    for (const bool broken : {false, true}) {
      if (broken) b.at(0, random.integer(0, count - 1)) = Rows<TypeParam>::gap();
      const Mirror mirror(this->allocator(), a.data, b.data);
      float expected[2];
      float actual[2];
      cpu::run(MaxChange{a.data.data(), b.data.data(), count, &expected[0], &expected[1], kDType});
      cuda::run(MaxChange{mirror(a.data.data()), mirror(b.data.data()), count, &actual[0], &actual[1], kDType},
                this->queue());
      EXPECT_EQ(std::isnan(actual[0]), broken);
      EXPECT_TRUE(broken || actual[0] == expected[0]);
      EXPECT_EQ(actual[1], expected[1]);
    }
  }
}

class CudaKernelsOnce : public test::GpuTest {};

TEST_F(CudaKernelsOnce, CastsRoundAsTheCpuDoes) {
  Random random;
  const auto check = [&]<typename From, typename To>(std::int64_t rows, std::int64_t columns, std::int64_t gap) {
    Rows<From> input(rows, columns, columns + gap);
    Rows<To> output(rows, columns, columns + gap);
    input.randomise(random);
    const Mirror mirror(allocator(), input.data, output.data);
    Cast op{input.data.data(),    output.data.data(), rows,         columns,
            DTypeOf<From>::value, DTypeOf<To>::value, input.stride, output.stride};
    cpu::run(op);
    op.input = mirror(op.input);
    op.output = mirror(op.output);
    cuda::run(op, queue());
    test::Doubles expected = output.dense();
    output.data = mirror.now(output.data);
    EXPECT_EQ(output.dense(), expected);
    output.expect_gaps_untouched();
  };
  for (const std::int64_t columns : {std::int64_t{1}, random.integer(2, 40), std::int64_t{256}}) {
    const std::int64_t rows = random.integer(1, 5);
    const std::int64_t gap = columns == 256 ? 8 : random.integer(0, 3);
    check.operator()<float, BFloat16>(rows, columns, gap);
    check.operator()<BFloat16, float>(rows, columns, gap);
    check.operator()<float, float>(rows, columns, gap);
  }
  check.operator()<float, BFloat16>(1, random.integer(1000, 3000), 0);
}

TEST_F(CudaKernelsOnce, AdamWTakesTheCpusStep) {
  Random random;
  for (const std::int64_t count : {random.integer(1, 9), random.integer(1000, 3000)}) {
    for (const std::int64_t offset : {0, 1}) {  // the second breaks the alignment
      const auto size = static_cast<std::size_t>(count + offset);
      auto weight = random.normals(size);
      auto momentum = random.normals(size, 0.1);
      auto variance = random.normals(size, 0.1);
      for (float& value : variance) value = std::fabs(value);
      const auto gradient = random.normals(size);
      std::vector<BFloat16> copy(size);
      const Mirror mirror(allocator(), weight, momentum, variance, gradient, copy);
      AdamW op{.weight = weight.data() + offset,
               .momentum = momentum.data() + offset,
               .variance = variance.data() + offset,
               .gradient = gradient.data() + offset,
               .copy = random.flip() ? copy.data() + offset : nullptr,
               .count = count,
               .step = random.integer(1, 100),
               .learning_rate = 1e-2f,
               .beta1 = 0.9f,
               .beta2 = 0.95f,
               .epsilon = 1e-8f,
               .weight_decay = 0.1f,
               .gradient_scale = 0.7f};
      cpu::run(op);
      op.weight = mirror(op.weight);
      op.momentum = mirror(op.momentum);
      op.variance = mirror(op.variance);
      op.gradient = mirror(op.gradient);
      op.copy = mirror(op.copy);
      cuda::run(op, queue());
      expect_same(mirror, weight, "weight", 1);
      expect_same(mirror, momentum, "momentum", 1);
      expect_same(mirror, variance, "variance", 1);
      expect_same(mirror, copy, "copy", 1);
    }
  }
}

TEST_F(CudaKernelsOnce, SumOfSquaresIsTheSum) {
  Random random;
  for (const std::int64_t count :
       {std::int64_t{0}, std::int64_t{1}, random.integer(2, 999), random.integer(9000, 40000)}) {
    for (const std::size_t offset : {0, 1}) {
      const auto data = random.normals(static_cast<std::size_t>(count) + offset + 1);
      double expected = 0;
      for (std::int64_t i = 0; i < count; ++i) {
        expected += std::pow(static_cast<double>(data[static_cast<std::size_t>(i) + offset]), 2);
      }
      const Mirror mirror(allocator(), data);
      double actual = -1;
      cuda::run(SumOfSquares{mirror(data.data() + offset), count, &actual}, queue());
      EXPECT_NEAR(actual, expected, 1e-12 * expected);
    }
  }
}

TEST_F(CudaKernelsOnce, MatrixProductsAreRightInEveryLayoutAndType) {
  Random random;
  const auto check = [&]<typename From, typename To>(bool whole) {
    const auto size = [&] { return whole ? 16 * random.integer(1, 6) : random.integer(1, 70); };
    Matmul op{.rows = size(), .columns = size(), .inner = size()};
    op.transpose_a = random.flip() ? Transpose::kYes : Transpose::kNo;
    op.transpose_b = random.flip() ? Transpose::kYes : Transpose::kNo;
    op.output = random.flip() ? Output::kAccumulate : Output::kOverwrite;
    op.operand_dtype = DTypeOf<From>::value;
    op.output_dtype = DTypeOf<To>::value;
    const auto gap = [&] { return whole ? 0 : random.integer(0, 5); };
    const bool turn_a = op.transpose_a == Transpose::kYes;
    const bool turn_b = op.transpose_b == Transpose::kYes;
    op.a_stride = (turn_a ? op.rows : op.inner) + gap();
    op.b_stride = (turn_b ? op.inner : op.columns) + gap();
    op.c_stride = op.columns + gap();
    Rows<From> a(turn_a ? op.inner : op.rows, turn_a ? op.rows : op.inner, op.a_stride);
    Rows<From> b(turn_b ? op.columns : op.inner, turn_b ? op.inner : op.columns, op.b_stride);
    Rows<To> c(op.rows, op.columns, op.c_stride);
    Rows<To> addend = c;
    addend.randomise(random);
    const bool adds_another = op.output == Output::kAccumulate && random.flip();
    a.randomise(random);
    b.randomise(random);
    c.randomise(random);
    op.a = a.data.data();
    op.b = b.data.data();
    test::Doubles expected = reference::multiply(op);
    const test::Doubles before = adds_another ? addend.dense() : c.dense();
    if (op.output == Output::kAccumulate) {
      for (std::size_t i = 0; i < expected.size(); ++i) expected[i] += before[i];
    }
    const Mirror mirror(allocator(), a.data, b.data, c.data, addend.data);
    op.a = mirror(op.a);
    op.b = mirror(op.b);
    op.c = mirror(c.data.data());
    op.addend = adds_another ? mirror(addend.data.data()) : nullptr;
    for (int round = 0; round < (op.output == Output::kOverwrite ? 2 : 1); ++round) cuda::run(op, queue());
    c.data = mirror.now(c.data);
    test::expect_close(c.dense(), expected, test::rounding_of<To>(), "product",
                       3 * std::sqrt(static_cast<double>(op.inner)));
    c.expect_gaps_untouched();
  };
  for (int trial = 0; trial < 12; ++trial) {
    check.operator()<float, float>(trial % 2 == 0);
    check.operator()<BFloat16, BFloat16>(trial % 2 == 0);
    check.operator()<BFloat16, float>(trial % 2 == 0);
  }
}

TEST_F(CudaKernelsOnce, AProductOverNothingIsZero) {
  std::vector<float> c(12, 3.0f);
  const Mirror mirror(allocator(), c);
  cuda::run(
      Matmul{.a = nullptr, .b = nullptr, .c = mirror(c.data()), .rows = 2, .columns = 3, .inner = 0, .c_stride = 5},
      queue());
  EXPECT_EQ(mirror.now(c), (std::vector<float>{0, 0, 0, 3, 3, 0, 0, 0, 3, 3, 3, 3}));
}

}  // namespace
}  // namespace kvloom
