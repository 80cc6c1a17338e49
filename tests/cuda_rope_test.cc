// Rotations on a GPU against the same on the CPU, which its own tests hold against doubles. Run with the kernels
// compiled for the host as well (simt_cuda_rope_test).
#include "kernels/rope.h"
#include "tests/support/random_pages.h"
#include "tests/support/same_as_cpu.h"

namespace kvloom {
namespace {

using test::expect_same;
using test::Mirror;
using test::Random;
using test::Rows;

template <typename T>
class CudaRope : public test::GpuTest {};
TYPED_TEST_SUITE(CudaRope, test::ComputeTypes);

constexpr std::int64_t kFurthestStart = 30;

// Of sequences of which some stand nowhere: `beyond` positions before 0.
std::vector<std::int32_t> random_starts(Random& random, std::int64_t sequences, std::int64_t beyond) {
  std::vector<std::int32_t> starts(static_cast<std::size_t>(sequences));
  for (std::int32_t& start : starts) {
    start = static_cast<std::int32_t>(random.integer(0, 3) == 0 ? -beyond : random.integer(0, kFurthestStart));
  }
  return starts;
}

TYPED_TEST(CudaRope, RopeIsTheCpusBothWays) {
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

TYPED_TEST(CudaRope, RopeSplitIntoCachesAndPagesIsTheCpus) {
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

}  // namespace
}  // namespace kvloom
