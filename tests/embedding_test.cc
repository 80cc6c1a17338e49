#include "kernels/embedding.h"

#include "tests/support/kernel_rows.h"

namespace kvloom {
namespace {

using test::Doubles;
using test::Random;
using test::Rows;

template <typename T>
class Embedding : public ::testing::Test {};
TYPED_TEST_SUITE(Embedding, test::ComputeTypes);

TYPED_TEST(Embedding, CopiesTheRowsThatTokensName) {
  Random random;
  const std::int64_t vocab = random.integer(1, 20);
  Rows<TypeParam> table(vocab, random.integer(1, 300));
  table.randomise(random);
  const auto tokens = random.tokens(static_cast<std::size_t>(random.integer(1, 40)), vocab);
  Rows<TypeParam> output(static_cast<std::int64_t>(tokens.size()), table.columns);
  cpu::run(EmbeddingForward{tokens.data(), table.data.data(), output.data.data(), output.rows, output.columns, vocab, 0,
                            DTypeOf<TypeParam>::value});
  for (std::int64_t r = 0; r < output.rows; ++r) {
    for (std::int64_t c = 0; c < output.columns; ++c) {
      ASSERT_EQ(output(r, c), table(tokens[static_cast<std::size_t>(r)], c)) << r << ", " << c;
    }
  }
}

// f32 sums in the order of rows, so that even their rounding is known.
TYPED_TEST(Embedding, GradientAddsRowsInTheirOrderForAnyThreadCount) {
  Random random;
  const std::int64_t vocab = random.integer(1, 9);
  const auto tokens = random.tokens(static_cast<std::size_t>(random.integer(150, 200)), vocab);
  Rows<TypeParam> grad(static_cast<std::int64_t>(tokens.size()), random.integer(257, 400));
  grad.randomise(random);
  const auto start = random.normals(test::area(vocab, grad.columns));
  auto expected = start;
  for (std::int64_t r = 0; r < grad.rows; ++r) {
    for (std::int64_t c = 0; c < grad.columns; ++c) {
      const auto at = static_cast<std::size_t>(tokens[static_cast<std::size_t>(r)] * grad.columns + c);
      expected[at] += static_cast<float>(grad.at(r, c));
    }
  }
  test::expect_equal_bits_for_any_thread_count([&] {
    auto table = start;
    cpu::run(EmbeddingBackward{tokens.data(), grad.data.data(), table.data(), grad.rows, grad.columns, vocab, 0,
                               DTypeOf<TypeParam>::value});
    EXPECT_TRUE(test::equal_bits(table, expected));
    return table;
  });
}

// A vocabulary in two shards: the outputs add up to the whole's, and each shard's gradient is its rows of the whole's.
TYPED_TEST(Embedding, ShardsAddUpToTheWhole) {
  Random random;
  const std::int64_t vocab = random.integer(2, 20);
  const std::int64_t cut = random.integer(1, vocab - 1);
  Rows<TypeParam> table(vocab, random.integer(1, 40));
  table.randomise(random);
  const auto tokens = random.tokens(static_cast<std::size_t>(random.integer(1, 40)), vocab);
  Rows<TypeParam> grad(static_cast<std::int64_t>(tokens.size()), table.columns);
  grad.randomise(random);
  std::vector<float> sharded(test::area(vocab, grad.columns), 0.0f);
  auto whole = sharded;
  cpu::run(EmbeddingBackward{tokens.data(), grad.data.data(), whole.data(), grad.rows, grad.columns, vocab, 0,
                             DTypeOf<TypeParam>::value});
  for (const auto& [first, end] : {std::pair(std::int64_t{0}, cut), std::pair(cut, vocab)}) {
    Rows<TypeParam> output(grad.rows, table.columns);
    const auto skipped = static_cast<std::size_t>(first * table.columns);
    cpu::run(EmbeddingForward{tokens.data(), table.data.data() + skipped, output.data.data(), output.rows,
                              output.columns, end - first, first, DTypeOf<TypeParam>::value});
    cpu::run(EmbeddingBackward{tokens.data(), grad.data.data(), sharded.data() + skipped, grad.rows, grad.columns,
                               end - first, first, DTypeOf<TypeParam>::value});
    for (std::int64_t r = 0; r < output.rows; ++r) {
      const std::int32_t token = tokens[static_cast<std::size_t>(r)];
      const bool held = token >= first && token < end;
      for (std::int64_t c = 0; c < output.columns; ++c) ASSERT_EQ(output(r, c), held ? table(token, c) : 0.0);
    }
  }
  EXPECT_TRUE(test::equal_bits(sharded, whole));
}

}  // namespace
}  // namespace kvloom
