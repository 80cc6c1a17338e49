// Prefill that stops early, at loose tolerances, against passes in plain double precision: when it settles, by K and by
// V, and that the last pass reads the newest K/V.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "core/decoder.h"
#include "tests/support/model_fixture.h"

namespace kvloom {
namespace {

using test::ReferenceKv;
using test::Rows;

constexpr int kPositions = 20;

// The largest change from one pass to the next, relative to the largest value.
double change_of(const Rows& now, const Rows& before) {
  double change = 0;
  double size = 0;
  for (std::size_t t = 0; t < now.size(); ++t) {
    for (std::size_t c = 0; c < now[t].size(); ++c) {
      change = std::max(change, std::abs(now[t][c] - before[t][c]));
      size = std::max(size, std::abs(now[t][c]));
    }
  }
  return change / size;
}

// Of the K and of the V of sources that are read from below, after each pass but the first.
struct Changes {
  std::vector<double> key;
  std::vector<double> value;

  double of(std::size_t pass) const { return std::max(key[pass], value[pass]); }
};

Changes changes_of(const KvMap& map, const std::vector<std::map<int, ReferenceKv>>& passes) {
  Changes changes{{1e300}, {1e300}};  // pass 0 has nothing to be compared with
  for (std::size_t pass = 1; pass < passes.size(); ++pass) {
    changes.key.push_back(0);
    changes.value.push_back(0);
    for (int source = 0; source < map.layers(); ++source) {
      const auto is_read_from_below = [&](KvPart part) {
        const std::span<const int> readers = map.readers(part, source);
        return std::ranges::any_of(readers, [&](int reader) { return reader < source; });
      };
      if (is_read_from_below(KvPart::kKey)) {
        const double change = change_of(passes[pass].at(source).key, passes[pass - 1].at(source).key);
        changes.key.back() = std::max(changes.key.back(), change);
      }
      if (is_read_from_below(KvPart::kValue)) {
        const double change = change_of(passes[pass].at(source).value, passes[pass - 1].at(source).value);
        changes.value.back() = std::max(changes.value.back(), change);
      }
    }
  }
  return changes;
}

// The first pass at which neither moves by more.
std::size_t settles_at(const std::vector<double>& changes, double tolerance) {
  return static_cast<std::size_t>(std::ranges::find_if(changes, [&](double change) { return change <= tolerance; }) -
                                  changes.begin());
}

struct Settled {
  int by_key = 0;    // V stood still before
  int by_value = 0;  // K did
};

void expect_early_stop(const std::string& map, test::Random& random, Settled& settled) {
  CachingCpuAllocator allocator;
  Model model(ModelConfig::from_proto(test::small_model(6, map)), DType::kF32, allocator);
  model.initialize(static_cast<std::uint64_t>(random.integer(0, 1 << 30)));
  test::disturb_vectors(model, random);
  const std::vector<std::int32_t> tokens = random.tokens(kPositions, model.config().vocab);
  const std::vector<int> ids(tokens.begin(), tokens.end());
  const test::ReferenceModel reference(model.config());
  const std::vector<double> weights = test::weights_of(model);
  const Changes changes = changes_of(model.config().kv_map, reference.passes_of_segment(weights, ids, kPositions - 1));
  // Between the changes of two passes, so that rounding decides nothing.
  const auto target = static_cast<std::size_t>(random.integer(2, 6));
  const double tolerance = std::sqrt(changes.of(target) * changes.of(target - 1));
  std::vector<double> both;
  for (std::size_t pass = 0; pass < changes.key.size(); ++pass) both.push_back(changes.of(pass));
  const std::size_t stop = settles_at(both, tolerance);
  const bool is_close =
      std::ranges::any_of(both, [&](double change) { return std::abs(change / tolerance - 1) < 0.05; });
  if (is_close || tolerance < 1e-4 || stop + 2 > kPositions) return;
  if (settles_at(changes.value, tolerance) < stop) ++settled.by_key;
  if (settles_at(changes.key, tolerance) < stop) ++settled.by_value;

  Decoder decoder(model, 1, kPositions);
  const Tensor input = Tensor::of<std::int32_t>(allocator, {kPositions}, tokens);
  const Tensor logits = decoder.prefill(input, {.passes = {.without_gradient = kPositions, .with_gradient = 0},
                                                .tolerance = static_cast<float>(tolerance),
                                                .asked = kPositions});
  const auto passes = static_cast<int>(stop) + 2;  // the last one reads what the settled one left
  EXPECT_EQ(decoder.prefill_passes(), passes) << map;
  const Rows expected = reference.iterated(weights, weights, ids, passes - 1, 1);
  for (std::size_t t = 0; t < expected.size(); ++t) {
    for (std::size_t v = 0; v < expected[t].size(); ++v) {
      ASSERT_NEAR(logits.as<float>()[t * expected[t].size() + v], expected[t][v], 1e-3) << map << " position " << t;
    }
  }
}

TEST(EarlyStop, WaitsForKAndForVAndReadsTheNewestPass) {
  test::Random random;
  Settled settled;
  for (int round = 0; round < 30; ++round) {
    for (const char* map : {"sandwich-middle:3", "sandwich-top:3", "pizza-middle:3", "0_3_4_3_4_5"}) {
      expect_early_stop(map, random, settled);
      if (HasFailure()) return;
    }
  }
  EXPECT_GT(settled.by_key, 0);
  EXPECT_GT(settled.by_value, 0);
}

// K/V of a pass are gone once the pass after the next one begins.
TEST(EarlyStop, TakesNoMoreMemoryForMorePasses) {
  test::Random random;
  const auto peak_of = [&](int passes) {
    CachingCpuAllocator allocator;
    Model model(ModelConfig::from_proto(test::small_model(6, "sandwich-middle:3")), DType::kF32, allocator);
    model.initialize(1);
    Decoder decoder(model, 8, 32);
    const std::vector<std::int32_t> tokens = random.tokens(8 * 32, model.config().vocab);
    const auto before = static_cast<std::int64_t>(allocator.statistics().peak_bytes);
    decoder.prefill(Tensor::of<std::int32_t>(allocator, {8 * 32}, tokens),
                    {.passes = {.without_gradient = passes, .with_gradient = 0}, .tolerance = 1e-9f});
    return static_cast<std::int64_t>(allocator.statistics().peak_bytes) - before;
  };
  EXPECT_EQ(peak_of(12), peak_of(4));
}

}  // namespace
}  // namespace kvloom
