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
  cpu::run(EmbeddingForward{tokens.data(), table.data.data(), output.data.data(), output.rows, output.columns,
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
    cpu::run(EmbeddingBackward{tokens.data(), grad.data.data(), table.data(), grad.rows, grad.columns,
                               DTypeOf<TypeParam>::value});
    EXPECT_TRUE(test::equal_bits(table, expected));
    return table;
  });
}

}  // namespace
}  // namespace kvloom
